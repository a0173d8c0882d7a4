"""DICOM: files, and objects sent over the network; nothing that a sender controls is trusted before it is checked."""
