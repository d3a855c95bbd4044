"""From a scan to its answer: windows, the network, and the way back to the scan's own grid."""
