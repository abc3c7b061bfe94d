"""cv2.Canny (aperture 3, L1 gradient) for batches, on any device, and how far two edge maps agree."""
import torch
import torch.nn.functional as F

TG22 = 13573  # tan(22.5 degrees) in 15 bits, the constant that decides ties


def canny(images, low=100, high=200):
    """images: uint8 [N,H,W,3]; low and high: numbers or int tensors [N]. Returns bool [N,H,W]."""
    n, h, w, _ = images.shape
    dev = images.device
    low = torch.as_tensor(low, device=dev).to(torch.int32).expand(n).view(n, 1, 1)
    high = torch.as_tensor(high, device=dev).to(torch.int32).expand(n).view(n, 1, 1)
    x = images.permute(0, 3, 1, 2).float().contiguous()
    p = F.pad(x, (1, 1, 1, 1), mode="replicate")
    # Floats hold these sums exactly.
    sy = p[:, :, :-2] + 2 * p[:, :, 1:-1] + p[:, :, 2:]
    dx = (sy[..., 2:] - sy[..., :-2]).to(torch.int32)
    sx = p[..., :-2] + 2 * p[..., 1:-1] + p[..., 2:]
    dy = (sx[:, :, 2:] - sx[:, :, :-2]).to(torch.int32)
    mag = dx.abs() + dy.abs()
    best, bx, by = mag[:, 0], dx[:, 0], dy[:, 0]
    for c in range(1, x.shape[1]):
        more = mag[:, c] > best
        best = torch.where(more, mag[:, c], best)
        bx = torch.where(more, dx[:, c], bx)
        by = torch.where(more, dy[:, c], by)
    m = F.pad(best, (1, 1, 1, 1))

    def at(i, j):
        return m[:, 1 + i:1 + i + h, 1 + j:1 + j + w]

    ax, ay = bx.abs(), by.abs() << 15  # at most 1020: the sums below stay in 32 bits
    flat = ay < ax * TG22
    steep = ay > ax * TG22 + (ax << 16)
    keep_flat = (best > at(0, -1)) & (best >= at(0, 1))
    keep_steep = (best > at(-1, 0)) & (best >= at(1, 0))
    down = (bx ^ by) < 0
    keep_diag = torch.where(down, (best > at(-1, 1)) & (best > at(1, -1)), (best > at(-1, -1)) & (best > at(1, 1)))
    keep = torch.where(flat, keep_flat, torch.where(steep, keep_steep, keep_diag)) & (best > low)
    return grow(keep & (best > high), keep)


def grow(strong, weak):
    """The weak pixels that a chain of weak neighbours joins to a strong one. Works on the list of those just reached:
    they are few, and a chain can be as long as the picture is wide."""
    n, h, w = weak.shape
    row = w + 2
    around = torch.tensor([-row - 1, -row, -row + 1, -1, 1, row - 1, row, row + 1], device=weak.device)
    out = F.pad(strong, (1, 1, 1, 1)).flatten()
    left = F.pad(weak & ~strong, (1, 1, 1, 1)).flatten()
    owner = torch.empty(left.numel(), dtype=torch.long, device=weak.device)
    front = out.nonzero()[:, 0]
    while front.numel():
        front = (front[:, None] + around).flatten()
        front = front[left[front]]
        # A pixel with several neighbours in the front is in the list as often: one stays.
        number = torch.arange(front.numel(), device=weak.device)
        owner[front] = number
        front = front[owner[front] == number]
        left[front] = False
        out[front] = True
    return out.view(n, h + 2, w + 2)[:, 1:-1, 1:-1]


def near(edges, radius=2):
    """Pixels within radius (Euclidean) of an edge pixel; bool [N,H,W]."""
    r = radius
    yy, xx = torch.meshgrid(torch.arange(-r, r + 1), torch.arange(-r, r + 1), indexing="ij")
    disc = (yy * yy + xx * xx <= r * r).float()[None, None].to(edges.device)
    return F.conv2d(edges.float()[:, None], disc, padding=r)[:, 0] > 0


def agreement(got, hint, radius=2):
    """F1 of two edge maps at a tolerance in pixels, one number a picture: precision is the share of got's pixels
    near the hint's, recall the share of the hint's near got's."""
    tp = (got & near(hint, radius)).flatten(1).sum(1).double()
    tr = (hint & near(got, radius)).flatten(1).sum(1).double()
    ng, nh = got.flatten(1).sum(1).double(), hint.flatten(1).sum(1).double()
    p, r = tp / ng.clamp(min=1), tr / nh.clamp(min=1)
    return torch.where(p + r > 0, 2 * p * r / (p + r).clamp(min=1e-9), torch.zeros_like(p))
