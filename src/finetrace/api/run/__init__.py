"""`finetrace run`: a configuration into a request, the stages of its pipeline, and what they would cost."""
