"""The one exception that means "the input is wrong and here is what to do"."""


class InputError(ValueError):
    """Bad input: the message says who, what was got, what is required and what to do.

    Scripts turn it into one line on standard error and exit code 2; any other exception is a defect of jaxseg.
    """
