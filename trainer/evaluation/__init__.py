"""From tables of predictions to figures, tables and pictures. Needs neither videos nor torch."""
