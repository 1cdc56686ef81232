//! What this crate promises to others: recorded messages, the contract's artefact against
//! independent libraries, and the guard in front of a real router.

// The attribute tells clippy that the helpers in these modules are tests too.
#[cfg(test)]
mod golden;
#[cfg(test)]
mod guard;
#[cfg(test)]
mod oracle;
