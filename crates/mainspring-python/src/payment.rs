//! Who pays for a session, and how budgets stand, as Python says and hears it: JSON.

use mainspring_engine::Payment;
use mainspring_models::budget::AccountReport;
use mainspring_session::{Budget, ErrorCode, Failure, SessionId};
use pyo3::PyResult;
use serde::Deserialize;

use crate::convert;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PaymentJson {
    #[serde(default)]
    tenant: Option<String>,
    #[serde(default)]
    within: Option<Vec<SessionId>>,
    #[serde(default)]
    budget: Option<Budget>,
}

/// Reads what is to change about who pays; nothing if nothing is given.
pub(crate) fn payment_of(payment: Option<&[u8]>) -> PyResult<Payment> {
    let Some(bytes) = payment else { return Ok(Payment::default()) };
    let read: PaymentJson = serde_json::from_slice(bytes).map_err(|error| {
        let message = format!("the payment cannot be read: {error}");
        convert::raise(Failure::new(ErrorCode::BUDGET_INVALID, message))
    })?;
    Ok(Payment { tenant: read.tenant, within: read.within, budget: read.budget })
}

/// Writes how a budget stands.
pub(crate) fn report_json(report: Option<&AccountReport>) -> String {
    let written = report.map(|report| {
        serde_json::json!({
            "budget": report.budget,
            "spent": report.spent,
            "reserved": report.reserved,
            "calls_under_way": report.calls,
            "calls_waiting": report.waiting,
            "low": report.is_low(),
        })
    });
    serde_json::Value::from(written).to_string()
}
