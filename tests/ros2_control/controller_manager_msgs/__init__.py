"""Stand-in for controller_manager_msgs 4.46.0: what the executor uses of it, with the fields and constants of its .srv
and .msg files. See json_types for how it travels."""
