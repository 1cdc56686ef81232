//! Usage, prices and invoices. Quantities and amounts are exact decimals, written as strings.

use jiff::Timestamp;
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::id::{JobId, RequestId, TenantId};

/// What is counted.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Meter {
    /// API calls.
    ApiUsage,
    /// Compute units of submitted payloads.
    JobSubmission,
    /// Completed jobs, and the milliseconds they took.
    JobCompletion,
    /// Outcomes made final on chain.
    BlockchainConfirmation,
}

/// What a quantity is a number of.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Unit {
    /// Requests.
    Call,
    /// 1,024 bytes of payload each.
    ComputeUnit,
    /// Jobs.
    Job,
    /// Milliseconds of computing.
    Millisecond,
    /// Confirmations.
    Confirmation,
}

/// How long the periods of aggregates are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Granularity {
    /// Hours.
    Hour,
    /// Days, in UTC.
    #[default]
    Day,
    /// Calendar months, in UTC.
    Month,
}

/// Which usage to show.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct UsageQuery {
    /// From this time; the present month's first if absent.
    pub from: Option<Timestamp>,
    /// To this time, exclusive; the present if absent.
    pub to: Option<Timestamp>,
    /// Length of the periods; a day if absent.
    #[param(inline)]
    pub granularity: Option<Granularity>,
    /// Only this meter.
    #[param(inline)]
    pub meter: Option<Meter>,
}

/// Which raw events to show.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct UsageEventsQuery {
    /// From this time; the present month's first if absent.
    pub from: Option<Timestamp>,
    /// To this time, exclusive; the present if absent.
    pub to: Option<Timestamp>,
    /// Only this meter.
    #[param(inline)]
    pub meter: Option<Meter>,
}

/// A tenant's usage over a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsageResponse {
    /// Whose usage.
    pub tenant_id: TenantId,
    /// From this time.
    pub from: Timestamp,
    /// To this time, exclusive.
    pub to: Timestamp,
    /// Length of the periods.
    pub granularity: Granularity,
    /// Everything reported to metering before this is counted; absent before it first caught up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_of: Option<Timestamp>,
    /// One entry per period, meter and unit that has any.
    pub data: Vec<UsageBucket>,
    /// The sum of `data` per meter and unit.
    pub totals: Vec<UsageTotal>,
}

/// Usage in one period.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsageBucket {
    /// When the period begins.
    pub period_start: Timestamp,
    /// What is counted.
    pub meter: Meter,
    /// What `quantity` is a number of.
    pub unit: Unit,
    /// How much.
    #[schema(value_type = String)]
    pub quantity: Decimal,
    /// Of how many events.
    pub events: u64,
}

/// Usage over all periods asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsageTotal {
    /// What is counted.
    pub meter: Meter,
    /// What `quantity` is a number of.
    pub unit: Unit,
    /// How much.
    #[schema(value_type = String)]
    pub quantity: Decimal,
    /// Of how many events.
    pub events: u64,
}

/// One line of `GET /v1/usage/events` (NDJSON): one billable fact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsageEvent {
    /// The event's id, unique within its source.
    pub event_id: String,
    /// Who told of it.
    #[schema(examples("/jobs"))]
    pub source: String,
    /// What is counted.
    pub meter: Meter,
    /// How much.
    #[schema(value_type = String)]
    pub quantity: Decimal,
    /// What `quantity` is a number of.
    pub unit: Unit,
    /// When it happened.
    pub occurred_at: Timestamp,
    /// The job it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<JobId>,
    /// The request it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// The request's route template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The answer's status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_code: Option<u16>,
}

/// How a quantity becomes an amount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PriceModel {
    /// Each tier's part of the quantity at that tier's price.
    Graduated,
}

/// The price of one meter and unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Price {
    /// What is counted.
    pub meter: Meter,
    /// What it is counted in.
    pub unit: Unit,
    /// How a quantity becomes an amount.
    pub model: PriceModel,
    /// Units a month that cost nothing.
    #[schema(value_type = String)]
    pub included: Decimal,
    /// What the units beyond those cost, lowest first.
    pub tiers: Vec<PriceTier>,
}

/// One step of a graduated price.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PriceTier {
    /// The last unit (beyond the included ones) at this price; absent for the last tier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub up_to: Option<Decimal>,
    /// What one unit costs.
    #[schema(value_type = String)]
    pub unit_price: Decimal,
}

/// Every price of the tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Prices {
    /// The price plan's name.
    pub plan: String,
    /// ISO 4217.
    #[schema(examples("EUR"))]
    pub currency: String,
    /// One entry per meter and unit.
    pub data: Vec<Price>,
}

/// Which invoice to preview.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct InvoiceQuery {
    /// The month, as `2026-01`; the present one if absent.
    #[param(pattern = "^[0-9]{4}-[0-9]{2}$")]
    pub month: Option<String>,
}

/// What the invoice of a month would be now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InvoicePreview {
    /// Whose invoice.
    pub tenant_id: TenantId,
    /// When the month begins.
    pub period_start: Timestamp,
    /// When it ends, exclusive.
    pub period_end: Timestamp,
    /// Everything reported to metering before this is counted; absent before it first caught up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_of: Option<Timestamp>,
    /// The price plan's name.
    pub plan: String,
    /// ISO 4217.
    pub currency: String,
    /// One line per meter and unit.
    pub lines: Vec<InvoiceLine>,
    /// The sum of the lines, rounded to the currency's smallest coin.
    #[schema(value_type = String)]
    pub total: Decimal,
}

/// One line of an invoice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InvoiceLine {
    /// What is counted.
    pub meter: Meter,
    /// What it is counted in.
    pub unit: Unit,
    /// How much was used.
    #[schema(value_type = String)]
    pub quantity: Decimal,
    /// How much of it costs nothing.
    #[schema(value_type = String)]
    pub included: Decimal,
    /// How the rest is priced.
    pub tiers: Vec<InvoiceTier>,
    /// The sum of the tiers.
    #[schema(value_type = String)]
    pub amount: Decimal,
}

/// The part of a line at one price.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InvoiceTier {
    /// How much falls into this tier.
    #[schema(value_type = String)]
    pub quantity: Decimal,
    /// What one unit costs.
    #[schema(value_type = String)]
    pub unit_price: Decimal,
    /// Their product.
    #[schema(value_type = String)]
    pub amount: Decimal,
}

impl Meter {
    /// Every meter.
    pub const ALL: [Self; 4] = [
        Self::ApiUsage,
        Self::JobSubmission,
        Self::JobCompletion,
        Self::BlockchainConfirmation,
    ];

    /// The meter as it stands in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ApiUsage => "API_USAGE",
            Self::JobSubmission => "JOB_SUBMISSION",
            Self::JobCompletion => "JOB_COMPLETION",
            Self::BlockchainConfirmation => "BLOCKCHAIN_CONFIRMATION",
        }
    }
}

impl Unit {
    /// Every unit.
    pub const ALL: [Self; 5] = [
        Self::Call,
        Self::ComputeUnit,
        Self::Job,
        Self::Millisecond,
        Self::Confirmation,
    ];

    /// The unit as it stands in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Call => "CALL",
            Self::ComputeUnit => "COMPUTE_UNIT",
            Self::Job => "JOB",
            Self::Millisecond => "MILLISECOND",
            Self::Confirmation => "CONFIRMATION",
        }
    }
}
