"""Methods x datasets x seeds under one recipe, and what they show."""
