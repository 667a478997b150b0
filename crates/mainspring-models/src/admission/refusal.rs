//! Why a call was not let in, in words.

use std::time::Duration;

use mainspring_session::{ErrorCode, Failure};
use mainspring_wire::HttpFailure;

use crate::endpoint_set::EndpointSet;

/// When a retry that was one too many may ask again, in milliseconds.
const RETRY_LATER_MS: u64 = 2_000;

/// No endpoint may be asked.
pub(super) fn unavailable(
    endpoints: &EndpointSet,
    member: usize,
    wait: Duration,
    last: &str,
) -> HttpFailure {
    let whose = match endpoints.count() {
        1 => server(endpoints, member),
        count => format!("model {:?} at its {count} endpoints", endpoints.model()),
    };
    let why = if last.is_empty() { String::new() } else { format!(", the last: {last}") };
    let message = format!("{whose} is left alone for {} after failures{why}", shown(wait));
    let failure = Failure::new(ErrorCode::MODEL_UNAVAILABLE, message)
        .with_hint("another model in the route takes over at once; a lone one is tried again then");
    HttpFailure { failure, retry_after_ms: Some(millis(wait)) }
}

/// Too many retries have been made already.
pub(super) fn no_retries(endpoints: &EndpointSet, member: usize, share: f64) -> HttpFailure {
    let server = server(endpoints, member);
    let percent = share * 100.0;
    let message = format!("{server} was not asked again: retries may be {percent} % of its calls");
    let failure = Failure::new(ErrorCode::MODEL_UNAVAILABLE, message)
        .with_hint("the server fails often; more retries would keep it from recovering");
    HttpFailure { failure, retry_after_ms: Some(RETRY_LATER_MS) }
}

/// The queue is full.
pub(super) fn queue_full(
    endpoints: &EndpointSet,
    member: usize,
    count: usize,
    wait: Duration,
) -> HttpFailure {
    let server = server(endpoints, member);
    let message = format!("{count} calls wait for {server}, limit {count}");
    let failure = Failure::new(ErrorCode::MODEL_OVERLOADED, message)
        .with_hint("begin less at once, ask the provider for higher limits, or add endpoints");
    HttpFailure { failure, retry_after_ms: Some(millis(wait).max(1)) }
}

/// The deadline comes before the call's turn.
pub(super) fn too_late(
    endpoints: &EndpointSet,
    member: usize,
    left: Duration,
    wait: Duration,
) -> HttpFailure {
    let server = server(endpoints, member);
    let (left, wait) = (shown(left), shown(wait));
    late(format!("{server} has no turn for this call for {wait}, its time is up in {left}"))
}

/// The deadline came before the call's turn.
pub(super) fn expired(endpoints: &EndpointSet, member: usize, waited: Duration) -> HttpFailure {
    let server = server(endpoints, member);
    late(format!("{server} had no turn for this call within the {} that it had", shown(waited)))
}

/// More keys are in use than can be remembered.
pub(super) fn too_many_channels(
    endpoints: &EndpointSet,
    member: usize,
    allowed: usize,
) -> HttpFailure {
    let server = server(endpoints, member);
    let message = format!("{server} is one key too many in use at once, limit {allowed}");
    Failure::new(ErrorCode::MODEL_OVERLOADED, message).into()
}

/// A call that is not known any more: nobody waits for it.
pub(super) fn lost() -> HttpFailure {
    Failure::new(ErrorCode::INTERNAL, "a waiting model call was forgotten").into()
}

fn late(message: String) -> HttpFailure {
    let mut failure = Failure::new(ErrorCode::MODEL_OVERLOADED, message)
        .with_hint("raise Limits.turn_s_max, begin less at once, or add endpoints");
    failure.retryable = false;
    failure.into()
}

fn server(endpoints: &EndpointSet, member: usize) -> String {
    let host = endpoints.endpoint(member).map_or("?", |endpoint| endpoint.host());
    format!("model {:?} at {host}", endpoints.model())
}

fn shown(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
