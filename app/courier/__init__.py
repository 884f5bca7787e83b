"""The courier: the one program that asks other servers. It fetches videos and delivers callbacks."""
