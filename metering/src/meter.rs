//! What is counted: the pairs of meter and unit that exist.

use contracts::api::usage::{Meter, Unit};
use thiserror::Error;

/// A meter in one of its units; facts of equal measure can be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Measure {
    /// Requests that the gateway admitted and that did not fail on our side.
    Calls,
    /// Compute units of submitted payloads.
    ComputeUnits,
    /// Completed jobs.
    CompletedJobs,
    /// Milliseconds that completed jobs computed.
    ComputeMilliseconds,
    /// Outcomes made final on chain.
    Confirmations,
}

/// The texts name no measure.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("nothing is measured by meter {meter:?} in unit {unit:?}")]
pub struct UnknownMeasure {
    meter: String,
    unit: String,
}

impl Measure {
    /// Every measure, in the order of an invoice's lines.
    pub const ALL: [Self; 5] = [
        Self::Calls,
        Self::ComputeUnits,
        Self::CompletedJobs,
        Self::ComputeMilliseconds,
        Self::Confirmations,
    ];

    /// The measure that the database's texts name.
    ///
    /// # Errors
    /// When they name none.
    pub fn parse(meter: &str, unit: &str) -> Result<Self, UnknownMeasure> {
        let named =
            |measure: &Self| measure.meter().as_str() == meter && measure.unit().as_str() == unit;
        Self::ALL
            .into_iter()
            .find(named)
            .ok_or_else(|| UnknownMeasure {
                meter: meter.to_owned(),
                unit: unit.to_owned(),
            })
    }

    /// What is counted.
    #[must_use]
    pub const fn meter(self) -> Meter {
        match self {
            Self::Calls => Meter::ApiUsage,
            Self::ComputeUnits => Meter::JobSubmission,
            Self::CompletedJobs | Self::ComputeMilliseconds => Meter::JobCompletion,
            Self::Confirmations => Meter::BlockchainConfirmation,
        }
    }

    /// What it is counted in.
    #[must_use]
    pub const fn unit(self) -> Unit {
        match self {
            Self::Calls => Unit::Call,
            Self::ComputeUnits => Unit::ComputeUnit,
            Self::CompletedJobs => Unit::Job,
            Self::ComputeMilliseconds => Unit::Millisecond,
            Self::Confirmations => Unit::Confirmation,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_measure_is_found_by_its_texts_and_no_other_pair_is() {
        for measure in Measure::ALL {
            let (meter, unit) = (measure.meter().as_str(), measure.unit().as_str());
            assert_eq!(Measure::parse(meter, unit), Ok(measure));
        }
        assert!(Measure::parse("API_USAGE", "MILLISECOND").is_err());
        assert!(Measure::parse("", "").is_err());
    }
}
