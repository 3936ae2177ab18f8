//! Choices made at boot: which line leaves, and when.

use core::str::FromStr;

/// Chooses which line of a full set leaves first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Policy {
    /// Second chance: in turn, but a line used since its last turn is passed over once.
    #[default]
    Clock,
    /// The least recently used line, as far as accessed marks tell.
    Lru,
    /// The line filled first, used or not.
    Fifo,
    /// Any line.
    Random,
}

/// Chooses when lines leave.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mechanism {
    /// Off the miss path, several sets at a time: one shootdown and one doorbell for the batch.
    #[default]
    Batch,
    /// At the miss, one set at a time (LegoOS's per-set eviction list).
    Inline,
    /// At the miss, by a copy into a few lines that all sets share (LegoOS's victim cache).
    Victim,
    /// At the miss; the victim's WRITE goes in the doorbell of the miss's READ (LegoOS's
    /// piggyback).
    Piggyback,
}

/// A name that stands for no choice.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("is none of {0}")]
pub struct Unknown(pub &'static str);

impl FromStr for Policy {
    type Err = Unknown;

    fn from_str(name: &str) -> Result<Self, Unknown> {
        Ok(match name {
            "clock" => Self::Clock,
            "lru" => Self::Lru,
            "fifo" => Self::Fifo,
            "random" => Self::Random,
            _ => return Err(Unknown("clock, lru, fifo, random")),
        })
    }
}

impl FromStr for Mechanism {
    type Err = Unknown;

    fn from_str(name: &str) -> Result<Self, Unknown> {
        Ok(match name {
            "batch" => Self::Batch,
            "inline" => Self::Inline,
            "piggyback" => Self::Piggyback,
            "victim" => Self::Victim,
            _ => return Err(Unknown("batch, inline, piggyback, victim")),
        })
    }
}
