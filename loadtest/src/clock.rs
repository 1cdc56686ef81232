//! The harness has one clock, read here alone; everything pure takes the time as an argument.

use jiff::Timestamp;

/// The present, in UTC, to the microsecond.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that reads the wall clock"
)]
pub(crate) fn now() -> Timestamp {
    let microseconds = Timestamp::now().as_microsecond();
    Timestamp::from_microsecond(microseconds).expect("the year is between -9999 and 9999")
}
