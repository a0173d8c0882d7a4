"""An exam's results for people and for the clinic's systems: a page, DICOM objects, and their way into a PACS."""
