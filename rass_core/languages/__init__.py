"""Language tags (BCP 47) and the identification of a text's language."""
