"""`python -m ncclcheck` is `ncclcheck`."""

from ncclcheck import interpreter

if __name__ == "__main__":
    interpreter.leave_current_folder()  # before anything else is looked for there
    from ncclcheck.cli import main

    main()
