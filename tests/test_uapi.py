"""Our layouts and numbers are those of the Linux UAPI headers: a small C program prints them, and we compare."""

import shutil
import subprocess
from pathlib import Path

import pytest

from sim_vmm import virtqueue
from sim_vmm.devices import virtio, virtio_disk
from sim_vmm.devices.virtio import legacy, modern, status
from sim_vmm.devices.virtio_nic import control as net_control
from sim_vmm.devices.virtio_nic import layout as net

HEADERS = ("ring", "blk", "pci", "net", "config", "ids")

#: C expressions, and what we hold them to be.
EXPRESSIONS: dict[str, int] = {
    "sizeof(struct vring_desc)": virtqueue.DESCRIPTOR.size,
    "offsetof(struct vring_desc, addr)": 0,
    "offsetof(struct vring_desc, len)": 8,
    "offsetof(struct vring_desc, flags)": 12,
    "offsetof(struct vring_desc, next)": 14,
    "sizeof(struct vring_used_elem)": virtqueue.USED_ELEMENT.size,
    "offsetof(struct vring_used_elem, len)": 4,
    "offsetof(struct vring_avail, ring)": virtqueue.RING_HEADER_BYTES,
    "offsetof(struct vring_avail, idx)": 2,
    "offsetof(struct vring_used, ring)": virtqueue.RING_HEADER_BYTES,
    "offsetof(struct vring_used, idx)": 2,
    "VRING_DESC_F_NEXT": virtqueue.DESC_F_NEXT,
    "VRING_DESC_F_WRITE": virtqueue.DESC_F_WRITE,
    "VRING_DESC_F_INDIRECT": virtqueue.DESC_F_INDIRECT,
    "VRING_AVAIL_F_NO_INTERRUPT": virtqueue.AVAIL_F_NO_INTERRUPT,
    "VRING_USED_F_NO_NOTIFY": virtqueue.USED_F_NO_NOTIFY,
    "legacy_available(256)": virtqueue.legacy_addresses(0, 256).available,
    "legacy_used(256)": virtqueue.legacy_addresses(0, 256).used,
    "legacy_used(2048)": virtqueue.legacy_addresses(0, 2048).used,
    "legacy_used(8)": virtqueue.legacy_addresses(0, 8).used,
    "VIRTIO_CONFIG_S_ACKNOWLEDGE": status.STATUS_ACK,
    "VIRTIO_CONFIG_S_DRIVER": status.STATUS_DRIVER,
    "VIRTIO_CONFIG_S_DRIVER_OK": status.STATUS_DRIVER_OK,
    "VIRTIO_CONFIG_S_FEATURES_OK": status.STATUS_FEATURES_OK,
    "VIRTIO_CONFIG_S_NEEDS_RESET": status.STATUS_NEEDS_RESET,
    "VIRTIO_CONFIG_S_FAILED": status.STATUS_FAILED,
    "1ull << VIRTIO_F_VERSION_1": virtio.FEATURE_VERSION_1,
    "VIRTIO_ID_NET": virtio.TYPE_NET,
    "VIRTIO_ID_BLOCK": virtio.TYPE_BLOCK,
    "VIRTIO_MSI_NO_VECTOR": virtio.NO_VECTOR,
    "VIRTIO_PCI_ISR_CONFIG": status.ISR_CONFIG,
    "VIRTIO_PCI_HOST_FEATURES": legacy.HOST_FEATURES,
    "VIRTIO_PCI_GUEST_FEATURES": legacy.GUEST_FEATURES,
    "VIRTIO_PCI_QUEUE_PFN": legacy.QUEUE_PFN,
    "VIRTIO_PCI_QUEUE_NUM": legacy.QUEUE_SIZE,
    "VIRTIO_PCI_QUEUE_SEL": legacy.QUEUE_SELECT,
    "VIRTIO_PCI_QUEUE_NOTIFY": legacy.QUEUE_NOTIFY,
    "VIRTIO_PCI_STATUS": legacy.STATUS,
    "VIRTIO_PCI_ISR": legacy.ISR,
    "VIRTIO_MSI_CONFIG_VECTOR": legacy.CONFIG_VECTOR,
    "VIRTIO_MSI_QUEUE_VECTOR": legacy.QUEUE_VECTOR,
    "VIRTIO_PCI_CONFIG_OFF(0)": legacy.HEADER_BYTES,
    "VIRTIO_PCI_CONFIG_OFF(1)": legacy.HEADER_BYTES_MSIX,
    "VIRTIO_PCI_QUEUE_ADDR_SHIFT": legacy.PAGE_SHIFT,
    "VIRTIO_PCI_CAP_COMMON_CFG": modern.CAP_COMMON,
    "VIRTIO_PCI_CAP_NOTIFY_CFG": modern.CAP_NOTIFY,
    "VIRTIO_PCI_CAP_ISR_CFG": modern.CAP_ISR,
    "VIRTIO_PCI_CAP_DEVICE_CFG": modern.CAP_DEVICE,
    "sizeof(struct virtio_pci_cap)": 3 + len(modern.capabilities(60)[0]),
    "sizeof(struct virtio_pci_notify_cap)": 3 + len(modern.capabilities(60)[3]),
    "offsetof(struct virtio_pci_cap, bar)": 4,
    "offsetof(struct virtio_pci_cap, offset)": 8,
    "VIRTIO_PCI_COMMON_DFSELECT": modern.DEVICE_FEATURE_SELECT,
    "VIRTIO_PCI_COMMON_DF": modern.DEVICE_FEATURE,
    "VIRTIO_PCI_COMMON_GFSELECT": modern.DRIVER_FEATURE_SELECT,
    "VIRTIO_PCI_COMMON_GF": modern.DRIVER_FEATURE,
    "VIRTIO_PCI_COMMON_MSIX": modern.CONFIG_VECTOR,
    "VIRTIO_PCI_COMMON_NUMQ": modern.QUEUE_COUNT,
    "VIRTIO_PCI_COMMON_STATUS": modern.DEVICE_STATUS,
    "VIRTIO_PCI_COMMON_CFGGENERATION": modern.CONFIG_GENERATION,
    "VIRTIO_PCI_COMMON_Q_SELECT": modern.QUEUE_SELECT,
    "VIRTIO_PCI_COMMON_Q_SIZE": modern.QUEUE_SIZE,
    "VIRTIO_PCI_COMMON_Q_MSIX": modern.QUEUE_VECTOR,
    "VIRTIO_PCI_COMMON_Q_ENABLE": modern.QUEUE_ENABLE,
    "VIRTIO_PCI_COMMON_Q_NOFF": modern.QUEUE_NOTIFY_OFFSET,
    "VIRTIO_PCI_COMMON_Q_DESCLO": modern.QUEUE_DESCRIPTORS,
    "VIRTIO_PCI_COMMON_Q_AVAILLO": modern.QUEUE_AVAILABLE,
    "VIRTIO_PCI_COMMON_Q_USEDLO": modern.QUEUE_USED,
    "sizeof(struct virtio_blk_outhdr)": virtio_disk.REQUEST_HEADER.size,
    "offsetof(struct virtio_blk_outhdr, sector)": 8,
    "VIRTIO_BLK_T_IN": virtio_disk.TYPE_IN,
    "VIRTIO_BLK_T_OUT": virtio_disk.TYPE_OUT,
    "VIRTIO_BLK_T_FLUSH": virtio_disk.TYPE_FLUSH,
    "VIRTIO_BLK_T_GET_ID": virtio_disk.TYPE_GET_ID,
    "VIRTIO_BLK_ID_BYTES": virtio_disk.ID_BYTES,
    "VIRTIO_BLK_S_OK": virtio_disk.STATUS_OK,
    "VIRTIO_BLK_S_IOERR": virtio_disk.STATUS_IO_ERROR,
    "VIRTIO_BLK_S_UNSUPP": virtio_disk.STATUS_UNSUPPORTED,
    "1 << VIRTIO_BLK_F_RO": virtio_disk.FEATURE_READ_ONLY,
    "1 << VIRTIO_BLK_F_BLK_SIZE": virtio_disk.FEATURE_BLOCK_SIZE,
    "1 << VIRTIO_BLK_F_FLUSH": virtio_disk.FEATURE_FLUSH,
    "offsetof(struct virtio_blk_config, capacity)": virtio_disk.CONFIG_CAPACITY,
    "offsetof(struct virtio_blk_config, blk_size)": virtio_disk.CONFIG_BLOCK_SIZE,
    "sizeof(struct virtio_net_hdr)": net.NET_HEADER.size,
    "offsetof(struct virtio_net_hdr, gso_type)": 1,
    "offsetof(struct virtio_net_hdr, hdr_len)": 2,
    "offsetof(struct virtio_net_hdr, gso_size)": 4,
    "offsetof(struct virtio_net_hdr, csum_start)": 6,
    "offsetof(struct virtio_net_hdr, csum_offset)": 8,
    "sizeof(struct virtio_net_hdr_v1)": net.header_bytes(virtio.FEATURE_VERSION_1),
    "sizeof(struct virtio_net_hdr_mrg_rxbuf)": net.header_bytes(net.FEATURE_MRG_RXBUF),
    "offsetof(struct virtio_net_hdr_v1, num_buffers)": net.NET_HEADER.size,
    "VIRTIO_NET_HDR_F_NEEDS_CSUM": net.HEADER_NEEDS_CHECKSUM,
    "VIRTIO_NET_HDR_GSO_NONE": net.GSO_NONE,
    "sizeof(struct virtio_net_config)": net.CONFIG_BYTES,
    "offsetof(struct virtio_net_config, mac)": 0,
    "offsetof(struct virtio_net_config, status)": 6,
    "offsetof(struct virtio_net_config, max_virtqueue_pairs)": 8,
    "VIRTIO_NET_S_LINK_UP": net.STATUS_LINK_UP,
    "1 << VIRTIO_NET_F_CSUM": net.FEATURE_CSUM,
    "1 << VIRTIO_NET_F_MAC": net.FEATURE_MAC,
    "1 << VIRTIO_NET_F_MRG_RXBUF": net.FEATURE_MRG_RXBUF,
    "1 << VIRTIO_NET_F_STATUS": net.FEATURE_STATUS,
    "1 << VIRTIO_NET_F_CTRL_VQ": net.FEATURE_CTRL_VQ,
    "1 << VIRTIO_NET_F_CTRL_RX": net.FEATURE_CTRL_RX,
    "1 << VIRTIO_NET_F_CTRL_RX_EXTRA": net.FEATURE_CTRL_RX_EXTRA,
    "1 << VIRTIO_NET_F_MQ": net.FEATURE_MQ,
    "sizeof(struct virtio_net_ctrl_hdr)": net_control.HEADER_BYTES,
    "sizeof(struct virtio_net_ctrl_mac)": 4,
    "sizeof(struct virtio_net_ctrl_mq)": 2,
    "VIRTIO_NET_CTRL_RX": net_control.CLASS_RX,
    "VIRTIO_NET_CTRL_RX_PROMISC": net_control.RX_PROMISC,
    "VIRTIO_NET_CTRL_RX_ALLMULTI": net_control.RX_ALL_MULTICAST,
    "VIRTIO_NET_CTRL_RX_ALLUNI": net_control.RX_ALL_UNICAST,
    "VIRTIO_NET_CTRL_RX_NOMULTI": net_control.RX_NO_MULTICAST,
    "VIRTIO_NET_CTRL_RX_NOUNI": net_control.RX_NO_UNICAST,
    "VIRTIO_NET_CTRL_RX_NOBCAST": net_control.RX_NO_BROADCAST,
    "VIRTIO_NET_CTRL_MAC": net_control.CLASS_MAC,
    "VIRTIO_NET_CTRL_MAC_TABLE_SET": net_control.MAC_TABLE_SET,
    "VIRTIO_NET_CTRL_MAC_ADDR_SET": net_control.MAC_ADDRESS_SET,
    "VIRTIO_NET_CTRL_MQ": net_control.CLASS_MQ,
    "VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET": net_control.MQ_PAIRS_SET,
    "VIRTIO_NET_OK": net_control.ACK_OK,
    "VIRTIO_NET_ERR": net_control.ACK_ERROR,
}

PROGRAM = r"""
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
%s

static struct vring ring_of(unsigned int size)
{
    struct vring ring;
    vring_init(&ring, size, (void *)0x100000, 4096);
    return ring;
}
#define legacy_available(size) ((uintptr_t)ring_of(size).avail - 0x100000)
#define legacy_used(size) ((uintptr_t)ring_of(size).used - 0x100000)

int main(void)
{
%s
    return 0;
}
"""


@pytest.fixture(scope="module")
def linux(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """The value of every expression, as Linux has it."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no gcc to ask the Linux headers with")
    missing = [name for name in HEADERS if not Path(f"/usr/include/linux/virtio_{name}.h").exists()]
    if missing:
        pytest.skip(f"the Linux headers are not installed (linux-libc-dev): no virtio_{missing[0]}.h")
    directory = tmp_path_factory.mktemp("uapi")
    includes = "\n".join(f"#include <linux/virtio_{name}.h>" for name in HEADERS)
    prints = "\n".join(f'    printf("%llu\\n", (unsigned long long)({text}));' for text in EXPRESSIONS)
    source, program = directory / "uapi.c", directory / "uapi"
    source.write_text(PROGRAM % (includes, prints))
    subprocess.run([compiler, "-o", program, source], check=True, capture_output=True, timeout=60)
    output = subprocess.run([program], check=True, capture_output=True, text=True, timeout=10).stdout
    return dict(zip(EXPRESSIONS, map(int, output.split()), strict=True))


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_our_number_is_that_of_linux(linux: dict[str, int], expression: str) -> None:
    assert linux[expression] == EXPRESSIONS[expression]
