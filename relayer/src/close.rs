//! When a batch closes, and whose turn it is, without I/O.

use jiff::SignedDuration;

/// When a batch closes.
#[derive(Clone, Copy, Debug)]
pub struct ClosePolicy {
    /// Most jobs of a batch.
    pub max_jobs: u32,
    /// How long the oldest job waits for company.
    pub max_age: SignedDuration,
}

/// Whose turn it is where both a shared batch is due and jobs wait that go alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Turn {
    /// The batch that jobs share.
    #[default]
    Shared,
    /// A job that goes alone.
    Alone,
}

/// Jobs that wait for a shared batch, at most as many as one holds.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// How many.
    pub count: u32,
    /// How long the oldest has waited.
    pub oldest: SignedDuration,
}

impl ClosePolicy {
    /// Whether what waits becomes a batch now.
    #[must_use]
    pub fn closes(&self, waiting: Waiting) -> bool {
        waiting.count >= self.max_jobs || (waiting.count > 0 && waiting.oldest >= self.max_age)
    }
}

impl Turn {
    /// What is closed next, if anything: what is there, and by turns where both are.
    #[must_use]
    pub fn next(self, shared: bool, alone: bool) -> Option<Self> {
        match (shared, alone) {
            (true, true) => Some(self),
            (true, false) => Some(Self::Shared),
            (false, true) => Some(Self::Alone),
            (false, false) => None,
        }
    }

    /// Whose turn it is after this one's.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Shared => Self::Alone,
            Self::Alone => Self::Shared,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_both_wait_they_take_turns() {
        let mut turn = Turn::default();
        let mut closed = Vec::new();
        for _ in 0..4 {
            let next = turn.next(true, true).unwrap();
            turn = next.other();
            closed.push(next);
        }
        assert_eq!(
            closed,
            [Turn::Shared, Turn::Alone, Turn::Shared, Turn::Alone]
        );
        assert_eq!(Turn::Shared.next(false, true), Some(Turn::Alone));
        assert_eq!(Turn::Alone.next(true, false), Some(Turn::Shared));
        assert_eq!(Turn::Alone.next(false, false), None);
    }

    #[test]
    fn a_batch_closes_on_size_or_age() {
        let second = SignedDuration::from_secs(1);
        let policy = ClosePolicy {
            max_jobs: 3,
            max_age: second,
        };
        let waiting = |count, oldest| Waiting { count, oldest };
        assert!(!policy.closes(waiting(0, second * 9)));
        assert!(!policy.closes(waiting(2, second / 2)));
        assert!(policy.closes(waiting(2, second)));
        assert!(policy.closes(waiting(3, SignedDuration::ZERO)));
    }
}
