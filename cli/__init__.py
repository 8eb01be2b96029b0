"""The command line `glm-image`: arguments in, sentences out. Nothing else imports it."""
