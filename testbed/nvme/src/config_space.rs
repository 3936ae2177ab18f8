//! The part of configuration space that a driver looks at: one 64-bit BAR and MSI-X.

/// Bytes of BAR 0.
pub(crate) const BAR_LEN: u32 = 1 << 16;
const BAR: usize = 0x10;
const CAPABILITY: usize = 0x40;

/// Configuration space.
#[derive(Debug)]
pub(crate) struct ConfigSpace {
    bytes: [u8; 256],
}

impl ConfigSpace {
    pub(crate) fn new(msix: bool) -> Self {
        let mut bytes = [0; 256];
        // Red Hat's number for QEMU's NVMe, and the class.
        bytes[..4].copy_from_slice(&[0x36, 0x1b, 0x10, 0x00]);
        bytes[8..12].copy_from_slice(&[0, 0x02, 0x08, 0x01]);
        bytes[BAR] = 4;
        if msix {
            bytes[6] = 1 << 4;
            bytes[0x34] = 0x40;
            bytes[CAPABILITY] = 0x11;
        }
        Self { bytes }
    }

    pub(crate) fn read(&self, offset: u16, into: &mut [u8]) {
        let at = usize::from(offset);
        let from = self.bytes.get(at..at + into.len());
        match from {
            Some(from) => into.copy_from_slice(from),
            None => into.fill(0xff),
        }
    }

    pub(crate) fn write(&mut self, offset: u16, from: &[u8]) {
        let at = usize::from(offset);
        let Ok(dword) = <[u8; 4]>::try_from(from) else {
            return;
        };
        let value = u32::from_le_bytes(dword);
        let kept = match at {
            0x04 => value & 0xffff | u32::from(self.bytes[6]) << 16,
            BAR => value & !(BAR_LEN - 1) | 4,
            0x14 => value,
            CAPABILITY => value & 0xc000_0000 | 0x11,
            _ => return,
        };
        self.bytes[at..at + 4].copy_from_slice(&kept.to_le_bytes());
    }

    pub(crate) fn is_master(&self) -> bool {
        self.bytes[4] & 1 << 2 != 0
    }

    pub(crate) fn has_vectors_on(&self) -> bool {
        self.bytes[CAPABILITY + 3] & 0xc0 == 0x80
    }
}
