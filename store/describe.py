"""How an exception is put into words, whatever the exception does."""

from __future__ import annotations


def describe(error: BaseException) -> str:
    """Return the exception's class and text, such as ``ValueError: text``.

    Args:
        error: An exception of an app, a driver or a hook.

    Returns:
        The class and the text; the class alone if there is no text; and ``<Class whose str() raises>`` if
        asking for the text raises, so that reporting an error never adds one.
    """
    name = type(error).__name__
    try:
        text = str(error)
    except BaseException:
        return f"<{name} whose str() raises>"
    return f"{name}: {text}" if text else name
