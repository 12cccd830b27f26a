"""Which resources the code location has. Settings come from the environment when something runs."""

from assets.resources import Platform

RESOURCES = {"platform": Platform()}
