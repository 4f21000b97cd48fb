from mlstack.host.cli import main

main()
