"""Extensions of the site: what Sphinx cannot do by itself."""
