"""What `edge-train check` says of a manifest: leaks, copies, marks that do not fit, and what metadata alone predict."""
