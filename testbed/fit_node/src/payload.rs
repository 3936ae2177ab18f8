//! Requests and replies whose every byte follows from the call's number, so that either side can
//! check them.
//!
//! ```text
//!  0        8            12
//!  | number | reply's len | pattern of the number …      a request, little-endian
//!  | pattern of the number's complement …                its reply
//! ```

/// The kind of call that is answered by a reply of the length asked for.
pub const ECHO: u16 = 1;
/// The kind of call that is answered by the callee's [tally](crate::tally) of the caller.
pub const TALLY: u16 = 2;

/// The most bytes of bulk, either way.
pub const MAX_BULK: u32 = 8192;
/// The shortest request.
pub const HEADER_LEN: usize = 12;

/// Request of the workload: the call's number and the wanted length of the reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TestRequest {
    /// The call's number.
    pub number: u64,
    /// Bytes of the reply.
    pub reply: u32,
}

impl TestRequest {
    /// Fills a request.
    ///
    /// # Panics
    ///
    /// When it is shorter than [`HEADER_LEN`].
    pub fn write(self, into: &mut [u8]) {
        let (header, rest) = into.split_at_mut(HEADER_LEN);
        header[..8].copy_from_slice(&self.number.to_le_bytes());
        header[8..].copy_from_slice(&self.reply.to_le_bytes());
        fill(self.number, rest);
    }

    /// Reads a request; nothing if a byte of it is not as it should be.
    #[must_use]
    pub fn read(request: &[u8]) -> Option<Self> {
        let (header, rest) = request.split_first_chunk::<HEADER_LEN>()?;
        let (number, reply) = header.split_first_chunk::<8>()?;
        let ask = Self {
            number: u64::from_le_bytes(*number),
            reply: u32::from_le_bytes(reply.try_into().ok()?),
        };
        is_filled(ask.number, rest).then_some(ask)
    }

    /// Fills the reply.
    pub fn answer(self, into: &mut [u8]) {
        fill(!self.number, into);
    }

    /// Returns whether `reply` is the right reply, in length and in each byte.
    #[must_use]
    pub fn is_answered_by(self, reply: &[u8]) -> bool {
        u32::try_from(reply.len()) == Ok(self.reply) && is_filled(!self.number, reply)
    }
}

/// Mixes the bits, so that neighbours differ everywhere.
fn word(seed: u64, index: u64) -> [u8; 8] {
    let mixed = (seed ^ index.rotate_left(40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ mixed >> 29).to_le_bytes()
}

fn fill(seed: u64, into: &mut [u8]) {
    for (index, piece) in (0..).zip(into.chunks_mut(8)) {
        piece.copy_from_slice(&word(seed, index)[..piece.len()]);
    }
}

fn is_filled(seed: u64, bytes: &[u8]) -> bool {
    (0..)
        .zip(bytes.chunks(8))
        .all(|(index, piece)| *piece == word(seed, index)[..piece.len()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_request_and_its_reply_pass_and_one_wrong_bit_does_not(
            number: u64, reply in 0_u32..100, more in 0_usize..100, at: prop::sample::Index, bit in 0_u8..8,
        ) {
            let ask = TestRequest { number, reply };
            let mut request = vec![0; HEADER_LEN + more];
            ask.write(&mut request);
            prop_assert_eq!(TestRequest::read(&request), Some(ask));
            let mut answer = vec![0; reply as usize];
            ask.answer(&mut answer);
            prop_assert!(ask.is_answered_by(&answer));
            if let Some(byte) = (!answer.is_empty()).then(|| at.index(answer.len())) {
                answer[byte] ^= 1 << bit;
                prop_assert!(!ask.is_answered_by(&answer));
            }
            if more > 0 {
                request[HEADER_LEN + at.index(more)] ^= 1 << bit;
                prop_assert_eq!(TestRequest::read(&request), None);
            }
        }

        #[test]
        fn any_bytes_are_a_request_or_none(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            prop_assert!(TestRequest::read(&bytes).is_none() || bytes.len() >= HEADER_LEN);
        }
    }

    #[test]
    fn the_reply_of_another_call_and_a_short_one_do_not_pass() {
        let ask = TestRequest {
            number: 7,
            reply: 4,
        };
        let mut reply = [0; 4];
        TestRequest {
            number: 8,
            reply: 4,
        }
        .answer(&mut reply);
        assert!(!ask.is_answered_by(&reply));
        ask.answer(&mut reply);
        assert!(ask.is_answered_by(&reply) && !ask.is_answered_by(&reply[..3]));
    }
}
