/* SPDX-License-Identifier: MIT */
#include "tables.h"

/* Spellings are linework.h's (lw_*_from_name): tests/cli holds the two against each other. */
static const char *const control_modes[] = {"balanced", "prompt", "control", NULL};
static const char *const samplers[] = {"ddim", "euler", "euler_a", "dpm++2m", "unipc", "lcm", NULL};
static const char *const schedulers[] = {"reference", "discrete", "karras", NULL};
static const char *const rngs[] = {"cuda", "cpu", NULL};
static const char *const precisions[] = {"auto", "fp32", "fp16", "bf16", NULL};
static const char *const likes[] = {"sd15", NULL};
static const char *const dtypes[] = {"fp32", "fp16", "bf16", NULL};
static const char *const layouts[] = {"ldm",         "sd",        "control", "control-bare", "combined-pth", "sd-pth",
                                      "control-pth", "diffusers", NULL};
static const char *const demo_pictures[] = {"drawing", "photo", NULL};

#define FLAG(n, c, h)                                                                                                  \
    { .name = n, .letter = c, .kind = OPT_FLAG, .help = h }
#define TEXT(n, c, v, d, h)                                                                                            \
    { .name = n, .letter = c, .kind = OPT_TEXT, .value = v, .fallback = d, .help = h }
#define INT(n, c, lo, hi, d, h)                                                                                        \
    { .name = n, .letter = c, .kind = OPT_INT, .min = lo, .max = hi, .value = "N", .fallback = d, .help = h }
#define NUMBER(n, lo, hi, d, h)                                                                                        \
    { .name = n, .kind = OPT_NUMBER, .min = lo, .max = hi, .value = "X", .fallback = d, .help = h }
#define CHOICE(n, list, d, h)                                                                                          \
    { .name = n, .kind = OPT_CHOICE, .choices = list, .value = "NAME", .fallback = d, .help = h }

#define FLAGS_OF_ALL                                                                                                   \
    [ALL_HELP] = FLAG("help", 'h', "print this help"), [ALL_VERSION] = FLAG("version", 0, "print version and build"),  \
    [ALL_JSON] = FLAG("json", 0, "one JSON object on standard output instead of text"),                                \
    [ALL_QUIET] = FLAG("quiet", 'q', "no progress and no notes"),                                                      \
    [ALL_VERBOSE] = FLAG("verbose", 'v', "say more: device, memory, time of every stage")

static const opt_spec generate_specs[N_GEN] = {
    FLAGS_OF_ALL,
    [GEN_MODEL] = TEXT("model", 'm', "FILE|DIR", "the embedded demo model", "the model: a checkpoint file or a folder"),
    [GEN_CONTROL_NET] = {.name = "control-net",
                         .kind = OPT_TEXT,
                         .group = OPT_OPENS_GROUP,
                         .value = "FILE|DIR",
                         .fallback = "the model's own",
                         .help = "a ControlNet; may be given again, each with the --control-image, --control-strength, "
                                 "--control-start and --control-end that follow it (before the first, they hold for "
                                 "all)"},
    [GEN_VAE] = TEXT("vae", 0, "FILE", "the model's own", "another VAE"),
    [GEN_VOCAB] = TEXT("vocab", 0, "FILE", "the model's own", "merges.txt or bpe_simple_vocab_16e6.txt.gz"),
    [GEN_IMAGE] = TEXT("image", 'i', "FILE", NULL, "the picture whose edges guide; - is standard input"),
    [GEN_CONTROL_IMAGE] = {.name = "control-image",
                           .kind = OPT_TEXT,
                           .group = OPT_IN_GROUP,
                           .value = "FILE",
                           .help =
                               "a ready edge map, white on black, used as it is, at its own size unless one is given; "
                               "instead of -i"},
    [GEN_PROMPT] = TEXT("prompt", 'p', "TEXT", NULL, "what to draw; required, but with --from-image"),
    [GEN_ADDED_PROMPT] = TEXT("added-prompt", 'a', "TEXT", "the model's", "joined to the prompt with \", \""),
    [GEN_NEGATIVE_PROMPT] = TEXT("negative-prompt", 'n', "TEXT", "the model's", "what not to draw"),
    [GEN_OUTPUT] = TEXT("output", 'o', "FILE", "out.png",
                        "the picture (png, jpg, webp or ppm); several samples: out-1.png, out-2.png, ...; - is "
                        "standard output, as PNG"),
    [GEN_RESOLUTION] = INT("resolution", 'r', 64, 8192, "512, or what the model names",
                           "short side of the result; both sides are rounded to 64"),
    [GEN_WIDTH] = INT("width", 'W', 64, 8192, NULL, "exact width, with -H and instead of -r"),
    [GEN_HEIGHT] = INT("height", 'H', 64, 8192, NULL, "exact height"),
    [GEN_SAMPLES] = INT("samples", 'b', 1, 12, "1", "how many pictures, made as one batch"),
    [GEN_STEPS] = INT("steps", 0, 1, 1000, "20", "denoising steps"),
    [GEN_CFG_SCALE] = NUMBER("cfg-scale", 0, 100, "9.0", "how closely the prompt is followed; 1 runs one pass a step"),
    [GEN_CONTROL_STRENGTH] = {.name = "control-strength",
                              .kind = OPT_NUMBER,
                              .group = OPT_IN_GROUP,
                              .max = 2,
                              .value = "X",
                              .fallback = "1.0",
                              .help = "how closely the edges are followed"},
    [GEN_ETA] = NUMBER("eta", 0, 1, "0.0", "noise added at each step; ddim only"),
    [GEN_CONTROL_MODE] = CHOICE("control-mode", control_modes, "balanced",
                                "prompt: weaker control deeper in the network; control: also none in the "
                                "unconditional pass"),
    [GEN_GUESS_MODE] = FLAG("guess-mode", 0, "the same as --control-mode control"),
    [GEN_CONTROL_START] = {.name = "control-start",
                           .kind = OPT_NUMBER,
                           .group = OPT_IN_GROUP,
                           .max = 1,
                           .value = "X",
                           .fallback = "0.0",
                           .help = "part of the steps after which the control begins"},
    [GEN_CONTROL_END] = {.name = "control-end",
                         .kind = OPT_NUMBER,
                         .group = OPT_IN_GROUP,
                         .max = 1,
                         .value = "X",
                         .fallback = "1.0",
                         .help = "part of the steps after which the control ends"},
    [GEN_CLIP_SKIP] = INT("clip-skip", 0, 1, 12, "1",
                          "which layer of the text encoder is used, counted from the last; for models that ask for 2"),
    [GEN_REUSE_STEPS] = TEXT("reuse-steps", 0, "LIST", NULL,
                             "steps, such as 9,11-13, that use the last one's result again: faster, another picture"),
    [GEN_SEED] = INT("seed", 's', -1, 4294967295.0, "-1", "seed of the noise; -1 draws one and prints it"),
    [GEN_CANNY_LOW] = NUMBER("canny-low", 0, 10000, "100", "an edge goes on above this gradient"),
    [GEN_CANNY_HIGH] = NUMBER("canny-high", 0, 10000, "200", "an edge begins above this gradient"),
    [GEN_SAMPLING_METHOD] = CHOICE("sampling-method", samplers, "ddim", "the sampler"),
    [GEN_SCHEDULER] =
        CHOICE("scheduler", schedulers, "reference", "the timesteps: ControlNet's own, evenly spaced, or Karras'"),
    [GEN_RNG] = CHOICE("rng", rngs, "cuda", "noise as PyTorch draws it on a GPU or on a CPU"),
    [GEN_DEVICE] = TEXT("device", 0, "auto|cpu|cuda[:N]", "auto", "where the networks run"),
    [GEN_PRECISION] =
        CHOICE("precision", precisions, "auto", "auto: fp16 on CUDA, fp32 on a CPU; bf16 there needs avx512_bf16"),
    [GEN_THREADS] = INT("threads", 't', 1, 1024, "as many as the machine has", "CPU threads"),
    [GEN_MAX_MEMORY] = {.name = "max-memory",
                        .kind = OPT_INT,
                        .min = 1,
                        .max = 9007199254740992.0,
                        .value = "BYTES",
                        .fallback = "no limit",
                        .help = "refuse a job that plans to use more"},
    [GEN_SAVE_CONTROL] = TEXT("save-control", 0, "FILE", NULL, "also write the edge map"),
    [GEN_SAVE_LATENTS] = TEXT("save-latents", 0, "FILE.npy", NULL, "also write the final latents, float32 [N,4,h,w]"),
    [GEN_INIT_LATENTS] = TEXT("init-latents", 0, "FILE.npy", NULL, "starting noise instead of the seed's first draw"),
    [GEN_PREVIEW] = TEXT("preview", 0, "FILE", NULL, "the picture so far, written again after each step"),
    [GEN_FROM_IMAGE] =
        TEXT("from-image", 0, "FILE", NULL, "take every parameter from a picture made before; other flags override it"),
    [GEN_DRY_RUN] = FLAG("dry-run", 0, "print the memory plan and the resolved job, compute nothing"),
};

const opt_command cli_generate = {
    .name = "generate",
    .arguments = "[options]",
    .summary = "a picture and a prompt make a new picture with the same edges",
    .text =
        "Reads a picture, finds its edges with Canny's method (or takes a ready edge map), and draws what the prompt "
        "says along them. The seed is always printed: the same command with it gives the same bytes again. A PNG "
        "holds its parameters as text; linework info shows them and --from-image takes them up.",
    .specs = generate_specs,
    .n_specs = N_GEN,
};

static const opt_spec canny_specs[N_CANNY] = {
    FLAGS_OF_ALL,
    [CANNY_INPUT] = TEXT("image", 'i', "FILE", NULL, "the picture; - is standard input"),
    [CANNY_OUTPUT] = TEXT("output", 'o', "FILE", NULL, "the edge map, white on black; - is standard output, as PNG"),
    [CANNY_LOW] = NUMBER("canny-low", 0, 10000, "100", "an edge goes on above this gradient"),
    [CANNY_HIGH] = NUMBER("canny-high", 0, 10000, "200", "an edge begins above this gradient"),
    [CANNY_RESOLUTION] =
        INT("resolution", 'r', 64, 8192, "the picture's own", "resize first: short side, both sides are rounded to 64"),
    [CANNY_SAVE_RESIZED] = TEXT("save-resized", 0, "FILE", NULL, "also write the picture that the edges were taken of"),
};

const opt_command cli_canny = {
    .name = "canny",
    .arguments = "-i FILE -o FILE [options]",
    .summary = "the exact edge map of a picture",
    .text = "The edges are those of OpenCV's Canny with aperture 3, bit for bit. Gray is taken as RGB, transparency is "
            "laid over white.",
    .specs = canny_specs,
    .n_specs = N_CANNY,
};

static const opt_spec info_specs[N_INFO] = {
    FLAGS_OF_ALL,
    [INFO_HASH] = FLAG("hash", 0, "compute a model's SHA-256 even where the file is over 1 GiB, and remember it"),
};

const opt_command cli_info = {
    .name = "info",
    .arguments = "[options] FILE|DIR",
    .summary = "what a model or a picture made by linework is",
    .text = "Of a model: layout, networks, types and sizes, read from its headers alone. Of a picture: the parameters "
            "that it was made with.",
    .specs = info_specs,
    .n_specs = N_INFO,
    .min_args = 1,
    .max_args = 1,
};

static const opt_spec tokenize_specs[N_TOKENIZE] = {
    FLAGS_OF_ALL,
    [TOKENIZE_MODEL] = TEXT("model", 'm', "FILE|DIR", "the embedded demo model", "the model whose vocabulary is used"),
    [TOKENIZE_VOCAB] = TEXT("vocab", 0, "FILE", NULL, "merges.txt or bpe_simple_vocab_16e6.txt.gz, without a model"),
};

const opt_command cli_tokenize = {
    .name = "tokenize",
    .arguments = "[options] [TEXT...]",
    .summary = "the 77 token ids of each text",
    .text = "One line of ids for each TEXT, or for each line of standard input where no TEXT is given.",
    .specs = tokenize_specs,
    .n_specs = N_TOKENIZE,
    .max_args = SIZE_MAX,
};

static const opt_spec demo_specs[N_DEMO] = {
    FLAGS_OF_ALL,
    [DEMO_PICTURE] = CHOICE("picture", demo_pictures, "drawing", "which of the shipped pictures"),
    [DEMO_PROMPT] = TEXT("prompt", 'p', "TEXT", "one that goes with the picture", "what to draw"),
    [DEMO_SEED] = INT("seed", 's', -1, 4294967295.0, "the one shipped with the picture",
                      "seed of the noise; -1 draws one and prints it"),
    [DEMO_OUTPUT] = TEXT("output", 'o', "FILE", "out-demo.png", "the picture; the edge map goes beside it"),
    [DEMO_DEVICE] = TEXT("device", 0, "auto|cpu|cuda[:N]", "auto", "where the networks run"),
    [DEMO_THREADS] = INT("threads", 't', 1, 1024, "as many as the machine has", "CPU threads"),
};

const opt_command cli_demo = {
    .name = "demo",
    .arguments = "[options]",
    .summary = "a first picture from the embedded model and a shipped drawing",
    .text = "Ends with the paths of the picture and of its edge map, the seed, and the command that makes them again.",
    .specs = demo_specs,
    .n_specs = N_DEMO,
};

static const opt_spec tune_specs[N_TUNE] = {
    FLAGS_OF_ALL,
    [TUNE_MODEL] =
        TEXT("model", 'm', "FILE|DIR", "the embedded demo model", "the model: a checkpoint file or a folder"),
    [TUNE_CONTROL_NET] = {.name = "control-net",
                          .kind = OPT_TEXT,
                          .group = OPT_OPENS_GROUP,
                          .value = "FILE|DIR",
                          .fallback = "the model's own",
                          .help = "a ControlNet; may be given again"},
    [TUNE_VAE] = TEXT("vae", 0, "FILE", "the model's own", "another VAE"),
    [TUNE_VOCAB] = TEXT("vocab", 0, "FILE", "the model's own", "merges.txt or bpe_simple_vocab_16e6.txt.gz"),
    [TUNE_IMAGE] = TEXT("image", 'i', "FILE", "a square one",
                        "a picture of the size that the job will have; - is "
                        "standard input"),
    [TUNE_RESOLUTION] = INT("resolution", 'r', 64, 8192, "512, or what the model names",
                            "short side of the result; both sides are rounded to 64"),
    [TUNE_WIDTH] = INT("width", 'W', 64, 8192, NULL, "exact width, with -H and instead of -r"),
    [TUNE_HEIGHT] = INT("height", 'H', 64, 8192, NULL, "exact height"),
    [TUNE_SAMPLES] = INT("samples", 'b', 1, 12, "1", "how many pictures the job makes as one batch"),
    [TUNE_CFG_SCALE] = NUMBER("cfg-scale", 0, 100, "9.0", "1 tunes the job of one pass a step"),
    [TUNE_DEVICE] = TEXT("device", 0, "auto|cpu|cuda[:N]", "auto", "where the networks run"),
    [TUNE_PRECISION] =
        CHOICE("precision", precisions, "auto", "auto: fp16 on CUDA, fp32 on a CPU; bf16 there needs avx512_bf16"),
    [TUNE_THREADS] = INT("threads", 't', 1, 1024, "as many as the machine has", "CPU threads"),
};

const opt_command cli_tune = {
    .name = "tune",
    .arguments = "[options]",
    .summary = "find the fastest way to run a job's operations on this machine",
    .text = "Times every operation of a job that can be run in more than one way, at the job's sizes, and keeps what "
            "was chosen in the cache, where later jobs with the same sizes, device, thread count and version find it. "
            "A faster way may take more memory, and rounds differently: a picture's text names the choices by a hash. "
            "No other command tunes.",
    .specs = tune_specs,
    .n_specs = N_TUNE,
};

static const opt_spec make_specs[N_MAKE] = {
    FLAGS_OF_ALL,
    [MAKE_LIKE] = CHOICE("like", likes, "sd15", "whose shapes: Stable Diffusion 1.5 with ControlNet"),
    [MAKE_LAYOUT] = CHOICE("layout", layouts, "ldm",
                           "ldm: one safetensors file; sd, control: without and only the ControlNet; control-bare: "
                           "that without prefixes; -pth: as torch.save writes it; diffusers: a folder"),
    [MAKE_DTYPE] = CHOICE("dtype", dtypes, "fp32", "type of the weights"),
    [MAKE_SEED] = INT("seed", 's', 0, 4294967295.0, "1", "names the values, which are the same in every layout"),
    [MAKE_SMALL] = FLAG("small", 0, "the same networks with narrow layers: a file of some megabytes, for tests"),
};

const opt_command cli_make_model = {
    .name = "make-model",
    .arguments = "[options] OUT",
    .summary = "a model of random weights in a real model's shapes",
    .text =
        "Written a tensor at a time; for tests of loading, parity and speed without the real weights. Pictures that "
        "it makes show nothing.",
    .specs = make_specs,
    .n_specs = N_MAKE,
    .min_args = 1,
    .max_args = 1,
};

static const opt_spec convert_specs[N_CONVERT] = {
    FLAGS_OF_ALL,
    [CONVERT_DTYPE] = CHOICE("dtype", dtypes, "as they are", "type of the weights"),
    [CONVERT_TRANSFER] =
        TEXT("transfer", 0, "BASE", NULL,
             "the model that IN's ControlNet was trained on (SD1.5): with --community, that ControlNet "
             "becomes the other's, w = control + (community - base)"),
    [CONVERT_COMMUNITY] = TEXT("community", 0, "MODEL", NULL, "the model that the ControlNet is wanted for"),
};

const opt_command cli_convert = {
    .name = "convert",
    .arguments = "[options] IN OUT.safetensors",
    .summary = "any model as safetensors",
    .text = "IN may have any layout that is read. It is copied a tensor at a time; what is of no network (EMA weights, "
            "an optimizer's state) is left out, metadata is kept, and nothing of a pickle is run.",
    .specs = convert_specs,
    .n_specs = N_CONVERT,
    .min_args = 2,
    .max_args = 2,
};

static const opt_spec doctor_specs[N_DOCTOR] = {
    FLAGS_OF_ALL,
    [DOCTOR_CONTROL_NET] =
        TEXT("control-net", 0, "FILE|DIR", "the model's own", "a ControlNet to check the models with"),
    [DOCTOR_VAE] = TEXT("vae", 0, "FILE|DIR", "the model's own", "a VAE to check the models with"),
};

const opt_command cli_doctor = {
    .name = "doctor",
    .arguments = "[options] MODEL...",
    .summary = "what is wrong with a model's file, and what it can be used for",
    .text = "Reads every value. Says layout, release, what is missing, extra or damaged, and the memory that a job "
            "takes. A report on a model that can't be used is printed too; the exit code is then 3.",
    .specs = doctor_specs,
    .n_specs = N_DOCTOR,
    .min_args = 1,
    .max_args = SIZE_MAX,
};

static const opt_spec fetch_vocab_specs[N_ALL] = {FLAGS_OF_ALL};

const opt_command cli_fetch_vocab = {
    .name = "fetch-vocab",
    .arguments = "[options]",
    .summary = "CLIP's vocabulary, which models in single files need, into the cache",
    .text = "Takes it out of the open-clip-torch package of PyPI, with python3 and pip, and checks its SHA-256. Models "
            "in a diffusers folder bring their own.",
    .specs = fetch_vocab_specs,
    .n_specs = N_ALL,
};

const opt_command *const cli_commands[] = {&cli_generate,   &cli_canny,   &cli_demo,   &cli_info, &cli_tokenize,
                                           &cli_make_model, &cli_convert, &cli_doctor, &cli_tune, &cli_fetch_vocab};
const size_t cli_n_commands = sizeof cli_commands / sizeof *cli_commands;

const char *const cli_reserved[] = {"pd", "score", "serve", NULL};
