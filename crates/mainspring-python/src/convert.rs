//! From the engine's types to Python's: tuples of plain values, which `_lane.py` names.

use mainspring_engine::{
    CallContext, Completion, Pending, PendingKind, Replay, SessionOutcome, SessionReport,
    WatchBatch, WatchItem,
};
use mainspring_journal::{SessionHead, SessionStatus};
use mainspring_session::{Failure, FinishReason, Record};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};

use crate::bridge::{Item, Payload, SyncJob};
use crate::models::Pieces;

const TOOL: u8 = 0;
const VERIFY: u8 = 1;
const CANCEL: u8 = 2;
const START_THREAD: u8 = 3;
const RESOLVE: u8 = 4;
const POLICY: u8 = 5;
const RECONCILE: u8 = 6;
const MODEL: u8 = 7;

/// An item as a tuple whose first element says what it is.
pub(crate) fn item<'py>(py: Python<'py>, item: Item) -> PyResult<Bound<'py, PyTuple>> {
    match item {
        Item::Tool { ticket, tool, arguments, context } => {
            job(py, TOOL, ticket, tool, &arguments, &context)
        }
        Item::Policy { ticket, tool, arguments, context } => {
            job(py, POLICY, ticket, tool, &arguments, &context)
        }
        Item::Reconcile { ticket, tool, arguments, context } => {
            job(py, RECONCILE, ticket, tool, &arguments, &context)
        }
        Item::Verify { ticket, verifier, answer } => {
            (VERIFY, ticket, verifier, PyBytes::new(py, answer.as_bytes())).into_pyobject(py)
        }
        Item::Model { id, model, body } => {
            (MODEL, id, model, PyBytes::new(py, &body)).into_pyobject(py)
        }
        Item::Cancel { ticket } => (CANCEL, ticket).into_pyobject(py),
        Item::StartThread => (START_THREAD,).into_pyobject(py),
        Item::Resolve { handle, result: Ok(value) } => {
            (RESOLVE, handle, true, payload(py, value)?).into_pyobject(py)
        }
        Item::Resolve { handle, result: Err(error) } => {
            (RESOLVE, handle, false, failure(py, error)?).into_pyobject(py)
        }
    }
}

/// A job for a thread, in the same form as one for the loop.
pub(crate) fn sync_job<'py>(py: Python<'py>, work: SyncJob) -> PyResult<Bound<'py, PyTuple>> {
    job(py, TOOL, work.ticket, work.tool, &work.arguments, &work.context)
}

fn job<'py>(
    py: Python<'py>,
    kind: u8,
    ticket: u64,
    tool: u32,
    arguments: &str,
    context: &CallContext,
) -> PyResult<Bound<'py, PyTuple>> {
    (
        kind,
        ticket,
        tool,
        PyBytes::new(py, arguments.as_bytes()),
        context.session.as_str(),
        context.call_id.as_str(),
        context.effect_id.as_str(),
        context.attempt,
        context.timeout_ms,
        context.tenure,
    )
        .into_pyobject(py)
}

/// `(code, message, hint, retryable)`.
pub(crate) fn failure(py: Python<'_>, error: Failure) -> PyResult<Bound<'_, PyTuple>> {
    (error.code.as_str(), error.message, error.hint, error.retryable).into_pyobject(py)
}

/// An exception whose arguments are a failure's parts; Python's side makes the public one of it.
pub(crate) fn raise(error: Failure) -> PyErr {
    PyRuntimeError::new_err((
        error.code.as_str().to_owned(),
        error.message,
        error.hint,
        error.retryable,
    ))
}

fn payload(py: Python<'_>, value: Payload) -> PyResult<Bound<'_, PyAny>> {
    Ok(match value {
        Payload::Unit => py.None().into_bound(py),
        Payload::Opened(session, from) => (session, from).into_pyobject(py)?.into_any(),
        Payload::Report(value) => report(py, value)?.into_any(),
        Payload::Batch(value) => batch(py, value)?.into_any(),
        Payload::Heads(heads) => list(py, heads.iter(), head)?.into_any(),
        Payload::Records(records) => list(py, records.iter(), record)?.into_any(),
        Payload::Bytes(Some(bytes)) => PyBytes::new(py, &bytes).into_any(),
        Payload::Bytes(None) => py.None().into_bound(py),
        Payload::Text(text) => text.into_pyobject(py)?.into_any(),
        Payload::OpenedAll(all) => list(py, all.into_iter(), |py, opened| {
            (opened.session.as_str(), opened.from.0, opened.agent.as_str()).into_pyobject(py)
        })?
        .into_any(),
        Payload::Pending(all) => list(py, all.iter(), pending)?.into_any(),
        Payload::Replay(value) => replay(py, &value)?.into_any(),
        Payload::Completion(done) => completion(py, &done)?.into_any(),
        Payload::Pieces(Pieces { restarted, text, done }) => {
            let done = done.map(|done| completion(py, &done)).transpose()?;
            (restarted, text, done).into_pyobject(py)?.into_any()
        }
        Payload::Counts(counts) => PyTuple::new(py, counts)?.into_any(),
    })
}

fn list<'py, T>(
    py: Python<'py>,
    values: impl Iterator<Item = T>,
    convert: impl Fn(Python<'py>, T) -> PyResult<Bound<'py, PyTuple>>,
) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for value in values {
        list.append(convert(py, value)?)?;
    }
    Ok(list)
}

/// `(status, text or None, failure or None, input, output, cached, reasoning tokens, usd, steps, cache
/// busts, tokens of those, compactions)`.
fn report(py: Python<'_>, report: SessionReport) -> PyResult<Bound<'_, PyTuple>> {
    let (status, text, error) = match report.outcome {
        SessionOutcome::Open => ("open", None, None),
        SessionOutcome::Waiting => ("waiting", None, None),
        SessionOutcome::Finished(text) => ("finished", Some(text), None),
        SessionOutcome::Failed(error) => ("failed", None, Some(failure(py, error)?)),
        SessionOutcome::Cancelled(reason) => ("cancelled", Some(reason), None),
    };
    let usage = report.usage;
    (
        status,
        text,
        error,
        usage.input_tokens,
        usage.output_tokens,
        usage.cached_tokens,
        usage.reasoning_tokens,
        report.cost_usd,
        report.steps,
        report.cache_busts,
        report.cache_bust_tokens,
        report.compactions,
    )
        .into_pyobject(py)
}

/// `(ended, [(seq, at_us, json) or (step, attempt, text, None)])`.
fn batch(py: Python<'_>, batch: WatchBatch) -> PyResult<Bound<'_, PyTuple>> {
    let items = list(py, batch.items.into_iter(), |py, item| match item {
        WatchItem::Event { seq, at_us, json } => (seq.0, at_us, json).into_pyobject(py),
        WatchItem::Delta { step, attempt, text } => {
            (step, attempt, text, py.None()).into_pyobject(py)
        }
    })?;
    (batch.ended, items).into_pyobject(py)
}

/// `(text, tool calls, finish reason, model, (input, output, cached, reasoning tokens), usd or None,
/// decision, attempts, problems)`. A tool call is `(id, name, arguments)`; the last three are JSON.
fn completion<'py>(py: Python<'py>, done: &Completion) -> PyResult<Bound<'py, PyTuple>> {
    let calls = list(py, done.answer.tool_calls.iter(), |py, call| {
        (call.id.as_str(), call.name.as_str(), call.arguments.as_str()).into_pyobject(py)
    })?;
    let usage = done.usage;
    (
        done.answer.text.as_str(),
        calls,
        finish_name(done.finish_reason),
        done.model.as_str(),
        (usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.reasoning_tokens),
        done.cost_usd,
        json_bytes(py, &done.decision),
        json_bytes(py, &done.attempts),
        json_bytes(py, &done.problems),
    )
        .into_pyobject(py)
}

fn json_bytes<'py>(py: Python<'py>, value: &impl serde::Serialize) -> Bound<'py, PyBytes> {
    let json = serde_json::to_vec(value).expect("plain data with string keys always encodes");
    PyBytes::new(py, &json)
}

fn finish_name(finish_reason: FinishReason) -> &'static str {
    match finish_reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::ToolCalls => "tool_calls",
        FinishReason::ContentFilter => "content_filter",
        FinishReason::Other => "other",
    }
}

/// The name of a status, as Python spells it.
pub(crate) fn status_name(status: SessionStatus) -> &'static str {
    match status {
        SessionStatus::Open => "open",
        SessionStatus::Waiting => "waiting",
        SessionStatus::Finished => "finished",
        SessionStatus::Failed => "failed",
        SessionStatus::Cancelled => "cancelled",
    }
}

/// The status of a name.
pub(crate) fn status_of(name: &str) -> Option<SessionStatus> {
    use SessionStatus::{Cancelled, Failed, Finished, Open, Waiting};
    [Open, Waiting, Finished, Failed, Cancelled]
        .into_iter()
        .find(|status| status_name(*status) == name)
}

/// `(id, status, agent, origin or None, epoch, events, created_us, updated_us, parent or None,
/// events shared with it or None, owner or None)`.
pub(crate) fn head<'py>(py: Python<'py>, head: &SessionHead) -> PyResult<Bound<'py, PyTuple>> {
    (
        head.id.as_str(),
        status_name(head.status),
        head.agent.as_str(),
        head.origin.as_ref().map(|origin| origin.0.as_str()),
        head.epoch.0,
        head.next_seq.0,
        head.created_us,
        head.updated_us,
        head.parent.as_ref().map(|(parent, _)| parent.as_str()),
        head.parent.as_ref().map(|(_, shared)| shared.0),
        head.owner.as_deref(),
    )
        .into_pyobject(py)
}

/// `(session, call, approval id or None, tool, arguments, effect id, attempt)`; without an approval
/// id it is the outcome that must be found out.
pub(crate) fn pending<'py>(py: Python<'py>, pending: &Pending) -> PyResult<Bound<'py, PyTuple>> {
    let approval = match &pending.kind {
        PendingKind::Approval(id) => Some(id.as_str()),
        PendingKind::Effect => None,
    };
    (
        pending.session.as_str(),
        pending.call.0,
        approval,
        pending.tool.as_str(),
        pending.arguments.as_str(),
        pending.effect_id.as_str(),
        pending.attempt,
    )
        .into_pyobject(py)
}

/// `(events that came out the same, None or (seq, recorded or None, replayed or None, why))`.
pub(crate) fn replay<'py>(py: Python<'py>, replay: &Replay) -> PyResult<Bound<'py, PyTuple>> {
    let divergence = replay.divergence.as_ref().map(|found| {
        (found.seq.0, found.recorded.as_deref(), found.replayed.as_deref(), found.why.as_str())
    });
    (replay.events, divergence).into_pyobject(py)
}

/// `(seq, at_us, epoch, json)`.
pub(crate) fn record<'py>(py: Python<'py>, record: &Record) -> PyResult<Bound<'py, PyTuple>> {
    (record.seq.0, record.at_us, record.epoch.0, record.json.get()).into_pyobject(py)
}
