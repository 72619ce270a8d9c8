"""One slide, several normalisations, one table: pictures and figures side by side."""
