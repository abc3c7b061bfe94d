include(GNUInstallDirs)
install(TARGETS linework linework_static LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(FILES include/linework.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
if(TARGET linework_cli)
  install(TARGETS linework_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  # The program writes its manual and its completion from its option tables.
  set(LW_MAN ${CMAKE_BINARY_DIR}/linework.1)
  set(LW_COMPLETION ${CMAKE_BINARY_DIR}/linework.bash)
  add_custom_command(OUTPUT ${LW_MAN} ${LW_COMPLETION}
    COMMAND linework_cli help --man > ${LW_MAN}
    COMMAND linework_cli help --completion > ${LW_COMPLETION}
    DEPENDS linework_cli)
  add_custom_target(man ALL DEPENDS ${LW_MAN} ${LW_COMPLETION})
  install(FILES ${LW_MAN} DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
  install(FILES ${LW_COMPLETION} DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME linework)
endif()
install(DIRECTORY models/demo DESTINATION ${CMAKE_INSTALL_DATADIR}/linework/models)
configure_file(cmake/linework.pc.in ${CMAKE_BINARY_DIR}/linework.pc @ONLY)
install(FILES ${CMAKE_BINARY_DIR}/linework.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
