"""DYNAP-CNN and Speck (SynSense): event-driven convolution cores, configured through samna."""
