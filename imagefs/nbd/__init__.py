"""An NBD server: disks shown to qemu, nbdcopy and the kernel through a socket. Knows Readers, not images."""
