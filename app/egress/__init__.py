"""The way out to other servers: to which addresses, over which connections. Nothing else opens one."""
