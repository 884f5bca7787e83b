"""The sandbox: all of this runs in the locked-down decoder process, and nowhere else.

It reads bytes that may be hostile. Nothing outside imports it (`app.video.launch` names where it begins), and
it imports `app.video.protocol` and nothing else of the application.
"""
