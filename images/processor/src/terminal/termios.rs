//! A terminal's settings: Linux's `struct termios` (`include/uapi/asm-generic/termbits.h`).

/// Control characters.
pub(crate) const CONTROLS: usize = 19;
/// Bytes of the kernel's `struct termios`, and of `struct termios2` with its two speeds.
pub(crate) const TERMIOS_SIZE: usize = 36;
pub(crate) const TERMIOS2_SIZE: usize = 44;

/// Places of control characters.
pub(crate) const VINTR: usize = 0;
pub(crate) const VQUIT: usize = 1;
pub(crate) const VERASE: usize = 2;
pub(crate) const VKILL: usize = 3;
pub(crate) const VEOF: usize = 4;
pub(crate) const VTIME: usize = 5;
pub(crate) const VMIN: usize = 6;
pub(crate) const VSTART: usize = 8;
pub(crate) const VSTOP: usize = 9;
pub(crate) const VSUSP: usize = 10;
pub(crate) const VEOL: usize = 11;
pub(crate) const VREPRINT: usize = 12;
pub(crate) const VWERASE: usize = 14;
pub(crate) const VLNEXT: usize = 15;
pub(crate) const VEOL2: usize = 16;

/// Flags of input.
pub(crate) const ISTRIP: u32 = 0o40;
pub(crate) const INLCR: u32 = 0o100;
pub(crate) const IGNCR: u32 = 0o200;
pub(crate) const ICRNL: u32 = 0o400;
pub(crate) const IXON: u32 = 0o2000;
pub(crate) const IXANY: u32 = 0o4000;
pub(crate) const IMAXBEL: u32 = 0o20000;
pub(crate) const IUTF8: u32 = 0o40000;

/// Flags of output.
pub(crate) const OPOST: u32 = 1;
pub(crate) const ONLCR: u32 = 4;
pub(crate) const OCRNL: u32 = 0o10;
pub(crate) const ONOCR: u32 = 0o20;
pub(crate) const ONLRET: u32 = 0o40;
/// `XTABS`: tabs become spaces.
pub(crate) const XTABS: u32 = 0o14000;

/// Local flags.
pub(crate) const ISIG: u32 = 1;
pub(crate) const ICANON: u32 = 2;
pub(crate) const ECHO: u32 = 0o10;
pub(crate) const ECHOE: u32 = 0o20;
pub(crate) const ECHOK: u32 = 0o40;
pub(crate) const ECHONL: u32 = 0o100;
pub(crate) const NOFLSH: u32 = 0o200;
pub(crate) const TOSTOP: u32 = 0o400;
pub(crate) const ECHOCTL: u32 = 0o1000;
pub(crate) const ECHOKE: u32 = 0o4000;
pub(crate) const IEXTEN: u32 = 0o100_000;

/// 38,400 baud, eight bits, receiver on: `B38400 | CS8 | CREAD`.
const CFLAG: u32 = 0o17 | 0o60 | 0o200;
const SPEED: u32 = 38_400;

/// The settings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Termios {
    pub(crate) input: u32,
    pub(crate) output: u32,
    pub(crate) control: u32,
    pub(crate) local: u32,
    line: u8,
    pub(crate) chars: [u8; CONTROLS],
}

impl Default for Termios {
    /// Returns the settings of a new terminal (Linux `tty_std_termios`, with UTF-8).
    fn default() -> Self {
        let mut chars = [0; CONTROLS];
        for (place, byte) in [
            (VINTR, 3),
            (VQUIT, 28),
            (VERASE, 127),
            (VKILL, 21),
            (VEOF, 4),
            (VMIN, 1),
            (VSTART, 17),
            (VSTOP, 19),
            (VSUSP, 26),
            (VREPRINT, 18),
            (13, 15),
            (VWERASE, 23),
            (VLNEXT, 22),
        ] {
            chars[place] = byte;
        }
        Self {
            input: ICRNL | IXON | IUTF8,
            output: OPOST | ONLCR,
            control: CFLAG,
            local: ISIG | ICANON | ECHO | ECHOE | ECHOK | ECHOCTL | ECHOKE | IEXTEN,
            line: 0,
            chars,
        }
    }
}

impl Termios {
    /// Returns the bytes of `struct termios2`, whose beginning is `struct termios`.
    pub(crate) fn encode(&self) -> [u8; TERMIOS2_SIZE] {
        let mut bytes = [0; TERMIOS2_SIZE];
        let words = [self.input, self.output, self.control, self.local];
        for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes[16] = self.line;
        bytes[17..TERMIOS_SIZE].copy_from_slice(&self.chars);
        for place in bytes[TERMIOS_SIZE..].chunks_exact_mut(4) {
            place.copy_from_slice(&SPEED.to_le_bytes());
        }
        bytes
    }

    /// Reads `struct termios`.
    pub(crate) fn decode(bytes: &[u8; TERMIOS_SIZE]) -> Self {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let mut chars = [0; CONTROLS];
        chars.copy_from_slice(&bytes[17..]);
        Self {
            input: word(0),
            output: word(4),
            control: word(8),
            local: word(12),
            line: bytes[16],
            chars,
        }
    }

    pub(crate) fn has_local(&self, flag: u32) -> bool {
        self.local & flag != 0
    }

    /// Returns whether a byte is the control character of a place; 0 switches a place off.
    pub(crate) fn is(&self, byte: u8, place: usize) -> bool {
        byte != 0 && self.chars[place] == byte
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Linux's settings of a new terminal as `stty -g` prints them, with iutf8.
    #[test]
    fn a_new_terminal_has_linux_s_settings() {
        let bytes = Termios::default().encode();
        assert_eq!(bytes[..4], 0x4500_u32.to_le_bytes());
        assert_eq!(bytes[4..8], 5_u32.to_le_bytes());
        assert_eq!(bytes[8..12], 0xbf_u32.to_le_bytes());
        assert_eq!(bytes[12..16], 0x8a3b_u32.to_le_bytes());
        let chars = b"\0\x03\x1c\x7f\x15\x04\0\x01\0\x11\x13\x1a\0\x12\x0f\x17\x16\0\0\0";
        assert_eq!(bytes[16..36], *chars);
        assert_eq!(
            Termios::decode(bytes[..36].first_chunk().unwrap()),
            Termios::default()
        );
    }
}
