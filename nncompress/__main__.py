from nncompress.cli import main

main()
