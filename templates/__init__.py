"""The Flex Template: its entry point, its rendered specs and the scripts that launch it."""
