//! A bitmap of free page frames. Pure; `frames` keeps the machine's.
//!
//! A bitmap and not a buddy system: runs of any length and alignment come from one search, freeing
//! needs no order, and a run can be given back piecemeal. Single frames, the common case, are found
//! from a hint in a step or two.

/// The size of a page and of its frame.
pub const PAGE_SIZE: usize = 4096;
const BITS: usize = 64;

/// The frames of a machine, numbered from physical address 0.
pub struct FrameBitmap<S> {
    /// Bit set: free.
    words: S,
    free: usize,
    /// No word before this one has a free frame.
    hint: usize,
}

/// The words that a bitmap of so many frames takes.
#[must_use]
pub const fn words_for(frames: usize) -> usize {
    frames.div_ceil(BITS)
}

impl<S: AsRef<[u64]> + AsMut<[u64]>> FrameBitmap<S> {
    /// A bitmap over `words` in which every frame is taken.
    pub fn new(mut words: S) -> Self {
        words.as_mut().fill(0);
        Self {
            words,
            free: 0,
            hint: 0,
        }
    }

    /// The number of free frames.
    #[must_use]
    pub fn free_frames(&self) -> usize {
        self.free
    }

    fn frames(&self) -> usize {
        self.words.as_ref().len() * BITS
    }

    fn is_free(&self, frame: usize) -> bool {
        self.words.as_ref()[frame / BITS] & 1 << (frame % BITS) != 0
    }

    fn set(&mut self, frame: usize, free: bool) {
        let bit = 1 << (frame % BITS);
        let word = &mut self.words.as_mut()[frame / BITS];
        if free {
            *word |= bit;
            self.free += 1;
            self.hint = self.hint.min(frame / BITS);
        } else {
            *word &= !bit;
            self.free -= 1;
        }
    }

    /// Gives the run of `count` frames from `first` on to the allocator.
    ///
    /// # Panics
    ///
    /// When one of them is free already or lies outside the bitmap: someone freed twice.
    pub fn free(&mut self, first: usize, count: usize) {
        for frame in first..first + count {
            assert!(!self.is_free(frame), "frame {frame:#x} freed twice");
            self.set(frame, true);
        }
    }

    /// Makes the free frames among those from `first` up to `end` unavailable: they hold what the
    /// boot loader left.
    pub fn withhold(&mut self, first: usize, end: usize) {
        for frame in first..end.min(self.frames()) {
            if self.is_free(frame) {
                self.set(frame, false);
            }
        }
    }

    /// Makes those of the frames from `first` up to `end` available that are not yet.
    pub fn provide(&mut self, first: usize, end: usize) {
        for frame in first..end.min(self.frames()) {
            if !self.is_free(frame) {
                self.set(frame, true);
            }
        }
    }

    /// Takes a run of `count` frames whose first is a multiple of `align` (a power of two); the
    /// lowest there is.
    ///
    /// # Panics
    ///
    /// When `count` is 0 or `align` no power of two.
    pub fn allocate(&mut self, count: usize, align: usize) -> Option<usize> {
        assert!(count > 0 && align.is_power_of_two());
        if count > self.free {
            return None;
        }
        let first = if count == 1 && align == 1 {
            self.find_one()
        } else {
            self.find_run(count, align)
        }?;
        for frame in first..first + count {
            self.set(frame, false);
        }
        Some(first)
    }

    fn find_one(&mut self) -> Option<usize> {
        let words = self.words.as_ref();
        let at = self.hint + words[self.hint..].iter().position(|&word| word != 0)?;
        self.hint = at;
        Some(at * BITS + words[at].trailing_zeros() as usize)
    }

    fn find_run(&self, count: usize, align: usize) -> Option<usize> {
        let words = self.words.as_ref();
        let mut first = (self.hint * BITS).next_multiple_of(align);
        while first + count <= self.frames() {
            if words[first / BITS] == 0 {
                first = ((first / BITS + 1) * BITS).next_multiple_of(align);
                continue;
            }
            match (first..first + count).find(|&frame| !self.is_free(frame)) {
                None => return Some(first),
                Some(taken) => first = (taken + 1).next_multiple_of(align),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bitmap(frames: usize) -> FrameBitmap<Vec<u64>> {
        let mut bitmap = FrameBitmap::new(vec![u64::MAX; words_for(frames)]);
        bitmap.provide(0, frames);
        bitmap
    }

    #[test]
    fn runs_are_aligned_and_lowest_first() {
        let mut bitmap = bitmap(256);
        assert_eq!(bitmap.allocate(1, 1), Some(0));
        assert_eq!(bitmap.allocate(3, 1), Some(1));
        assert_eq!(bitmap.allocate(70, 64), Some(64));
        assert_eq!(bitmap.allocate(1, 1), Some(4));
        assert_eq!(bitmap.allocate(200, 1), None);
    }

    #[test]
    fn a_withheld_frame_is_never_given() {
        let mut bitmap = bitmap(64);
        bitmap.withhold(2, 1000);
        assert_eq!(bitmap.allocate(3, 1), None);
        assert_eq!(bitmap.allocate(2, 1), Some(0));
        assert_eq!(bitmap.free_frames(), 0);
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn freeing_twice_is_a_bug() {
        bitmap(64).free(3, 1);
    }

    proptest! {
        /// Against a model: runs never overlap, are aligned, and whatever is freed can be had
        /// again.
        #[test]
        fn runs_never_overlap(steps in prop::collection::vec((1..40_usize, 0..5_u32, any::<bool>()), 1..200)) {
            const FRAMES: usize = 512;
            let mut bitmap = bitmap(FRAMES);
            let mut taken = [false; FRAMES];
            let mut runs = Vec::new();
            for (count, shift, release) in steps {
                if release && !runs.is_empty() {
                    let (first, count) = runs.swap_remove(count % runs.len());
                    bitmap.free(first, count);
                    taken[first..first + count].fill(false);
                    continue;
                }
                let align = 1_usize << shift;
                match bitmap.allocate(count, align) {
                    Some(first) => {
                        prop_assert_eq!(first % align, 0);
                        prop_assert!(taken[first..first + count].iter().all(|&taken| !taken));
                        taken[first..first + count].fill(true);
                        runs.push((first, count));
                    }
                    None => {
                        let fits = (0..=FRAMES - count)
                            .step_by(align)
                            .any(|first| taken[first..first + count].iter().all(|&taken| !taken));
                        prop_assert!(!fits, "there was a run of {} aligned to {}", count, align);
                    }
                }
                prop_assert_eq!(bitmap.free_frames(), taken.iter().filter(|&&taken| !taken).count());
            }
        }
    }
}
