# The devices of a minimal QEMU for microVMs (scripts/guest-qemu): the machine that command.py asks for, and nothing else.
# Q35 is there because QEMU 7.2 does not link without a machine of the old kind; Debian's own microvm build has it for the same reason.
CONFIG_PCI_DEVICES=n
CONFIG_MICROVM=y
CONFIG_Q35=y
CONFIG_VIRTIO_BLK=y
CONFIG_VIRTIO_NET=y
CONFIG_VIRTIO_SERIAL=y
