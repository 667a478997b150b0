//! Admission under virtual time, with servers that count in different ways.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use mainspring_session::{AgentSpec, Api, CallIndex, ErrorCode, Failure, ModelLimits, Usage};
use mainspring_wire::{CallIds, Codec, HttpFailure};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

use super::{Admission, AdmissionLimits, ChannelReport, Ended, Permit, Rates};
use crate::client::ModelRequest;
use crate::endpoint::Endpoint;
use crate::endpoint_set::{CallPolicy, EndpointSet, Weighted};

const SECOND: Duration = Duration::from_secs(1);

fn admission(change: impl FnOnce(&mut AdmissionLimits)) -> Arc<Admission> {
    let mut limits = AdmissionLimits::default();
    change(&mut limits);
    Admission::new(limits).unwrap()
}

fn endpoints(keys: &[(&str, f64)], limits: ModelLimits) -> Arc<EndpointSet> {
    let weighted = |(key, weight): &(&str, f64)| Weighted {
        endpoint: Arc::new(
            Endpoint::new(Api::ChatCompletions, "http://127.0.0.1:1/v1", Some(key), &[]).unwrap(),
        ),
        weight: *weight,
    };
    let policy = CallPolicy { limits, ..CallPolicy::default() };
    Arc::new(EndpointSet::new("m", keys.iter().map(weighted).collect(), policy).unwrap())
}

/// One key of a server on another machine, whose limits nobody has named.
fn far_key() -> Arc<EndpointSet> {
    let endpoint = Endpoint::new(Api::ChatCompletions, "https://far.example/v1", Some("k"), &[]);
    let only = Weighted { endpoint: Arc::new(endpoint.unwrap()), weight: 1.0 };
    Arc::new(EndpointSet::new("m", vec![only], CallPolicy::default()).unwrap())
}

fn one_key(requests_per_minute: Option<u64>) -> Arc<EndpointSet> {
    endpoints(&[("k", 1.0)], ModelLimits { requests_per_minute, ..ModelLimits::default() })
}

fn request(endpoints: &Arc<EndpointSet>) -> ModelRequest {
    let spec = r#"{"name":"a","models":[{"name":"m","base_url":"http://127.0.0.1:1/v1",
        "tool_mode":"native","output_mode":"native"}]}"#;
    let spec: AgentSpec = serde_json::from_str(spec).unwrap();
    let codec = Arc::new(Codec::new(&spec, &spec.models[0], false).unwrap());
    let ids = CallIds { first: CallIndex(0) };
    ModelRequest::new(&spec.models[0], Arc::clone(endpoints), codec, vec![b' '; 400].into(), ids)
}

fn of_tenant(endpoints: &Arc<EndpointSet>, tenant: &str) -> ModelRequest {
    ModelRequest { tenant: Arc::from(tenant), ..request(endpoints) }
}

fn answered(permit: Permit, first_token: Duration) {
    let usage = Usage { input_tokens: 100, output_tokens: 10, ..Usage::default() };
    let first_token_us = u64::try_from(first_token.as_micros()).unwrap();
    permit.end(&Ended::Answered { usage, first_token_us });
}

fn fails(permit: Permit, code: ErrorCode, retry_after_ms: Option<u64>) -> bool {
    permit.fail(&Failure::new(code, "it failed"), retry_after_ms, false)
}

fn only(admission: &Admission) -> ChannelReport {
    let mut reports = admission.report();
    assert_eq!(reports.len(), 1);
    reports.remove(0)
}

async fn refused(admission: &Arc<Admission>, request: &ModelRequest) -> HttpFailure {
    admission.admit(request).await.unwrap_err()
}

/// How a server counts the requests of a minute.
#[derive(Debug, Clone, Copy)]
enum Counting {
    /// In windows that begin at every full minute of its own clock.
    Fixed,
    /// In the minute before each request.
    Sliding,
    /// With a bucket that holds a minute's worth.
    Bucket,
}

/// A server that allows so many requests in a minute.
struct Server {
    counting: Counting,
    limit: usize,
    began: Instant,
    seen: VecDeque<Instant>,
    level: f64,
    at: Instant,
    requests: usize,
    refused: usize,
}

impl Server {
    fn new(counting: Counting, limit: usize) -> Self {
        let now = Instant::now();
        let (level, seen) = (limit as f64, VecDeque::new());
        Self { counting, limit, began: now, seen, level, at: now, requests: 0, refused: 0 }
    }

    /// Takes a request, or says how long to wait.
    fn take(&mut self) -> Result<(), Duration> {
        let now = Instant::now();
        self.requests += 1;
        let minute = 60 * SECOND;
        let wait = match self.counting {
            Counting::Fixed => {
                // Its clock is not ours.
                let since = now - self.began + 17 * SECOND;
                let window = u32::try_from(since.as_secs() / 60).unwrap();
                let start = self.began + (minute * window).saturating_sub(17 * SECOND);
                self.seen.retain(|at| *at >= start);
                minute * (window + 1) - since
            }
            Counting::Sliding => {
                self.seen.retain(|at| now - *at < minute);
                self.seen.front().map_or(SECOND, |first| minute - (now - *first))
            }
            Counting::Bucket => {
                let gained = (now - self.at).as_secs_f64() * self.limit as f64 / 60.0;
                self.level = (self.level + gained).min(self.limit as f64);
                self.at = now;
                if self.level >= 1.0 {
                    self.level -= 1.0;
                    return Ok(());
                }
                self.refused += 1;
                return Err(SECOND);
            }
        };
        if self.seen.len() < self.limit {
            self.seen.push_back(now);
            return Ok(());
        }
        self.refused += 1;
        Err(wait)
    }
}

/// Runs sessions of one call each against a server, as the session's own retries would.
async fn run_sessions(
    counting: Counting,
    sessions: usize,
    known: Option<u64>,
) -> (Server, Duration) {
    let admission = admission(|_| {});
    let endpoints = if known.is_some() { one_key(known) } else { far_key() };
    let server = Arc::new(std::sync::Mutex::new(Server::new(counting, 60)));
    let began = Instant::now();
    let tasks = (0..sessions).map(|idx| {
        let (admission, server) = (Arc::clone(&admission), Arc::clone(&server));
        let mut request = request(&endpoints);
        request.affinity = idx as u64 + 1;
        tokio::spawn(async move {
            for attempt in 1..=5 {
                request.attempt = attempt;
                let wait = match admission.admit(&request).await {
                    Err(failure) if !failure.failure.retryable => panic!("{failure}"),
                    Err(failure) => Duration::from_millis(failure.retry_after_ms.unwrap_or(500)),
                    Ok(permit) => {
                        tokio::time::sleep(Duration::from_millis(700)).await;
                        let taken = server.lock().unwrap().take();
                        let Err(wait) = taken else {
                            let told = headers(&[("x-ratelimit-limit-requests", "60")]);
                            permit.hear(&Rates::read(&told, 0).unwrap());
                            return answered(permit, SECOND);
                        };
                        let wait_ms = u64::try_from(wait.as_millis()).unwrap();
                        fails(permit, ErrorCode::MODEL_RATE_LIMITED, Some(wait_ms));
                        wait
                    }
                };
                tokio::time::sleep(wait).await;
            }
            panic!("session {idx} lost its turn");
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let server = Arc::into_inner(server).unwrap().into_inner().unwrap();
    (server, began.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_thousand_sessions_pass_a_key_of_60_requests_a_minute_and_none_is_lost() {
    for counting in [Counting::Fixed, Counting::Sliding, Counting::Bucket] {
        for known in [Some(60), None] {
            let (server, took) = run_sessions(counting, 1_000, known).await;
            let (requests, refused) = (server.requests, server.refused);
            let how = format!("{counting:?}, {known:?} configured");
            println!("{how}: {requests} requests, {refused} refused, {took:?}");
            assert!(refused as f64 <= requests as f64 * 0.02, "{how}: {refused} of {requests}");
            assert!(took < 1_050 * SECOND, "{how}: {took:?} for what takes 940 s at least");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_call_with_a_key_goes_alone_until_it_has_told_or_for_a_second() {
    for is_told in [true, false] {
        let (admission, endpoints) = (admission(|_| {}), far_key());
        let began = Instant::now();
        let first = admission.admit(&request(&endpoints)).await.unwrap();
        let others = (0..5).map(|_| {
            let (admission, request) = (Arc::clone(&admission), request(&endpoints));
            tokio::spawn(async move { admission.admit(&request).await.map(drop) })
        });
        let others: Vec<_> = others.collect();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(only(&admission).queued, 5);
        if is_told {
            first.hear(&Rates::default());
        }
        for other in others {
            other.await.unwrap().unwrap();
        }
        let expected = if is_told { Duration::from_millis(200) } else { SECOND };
        assert!(began.elapsed().abs_diff(expected) < Duration::from_millis(5));
    }
}

#[tokio::test(start_paused = true)]
async fn a_minute_never_holds_more_than_its_limit_however_it_begins() {
    let (admission, endpoints) = (admission(|_| {}), one_key(Some(120)));
    let mut made: Vec<Instant> = Vec::new();
    for round in 0..1_000_u32 {
        // Now and then nothing is asked for a while, so that a burst is saved up.
        if round % 90 == 0 {
            tokio::time::sleep(SECOND * (round % 7)).await;
        }
        let permit = admission.admit(&request(&endpoints)).await.unwrap();
        made.push(Instant::now());
        answered(permit, SECOND);
    }
    let most = |made: &[Instant]| {
        let within = |at: &Instant| {
            made.iter().filter(|other| **other >= *at && **other < *at + 60 * SECOND).count()
        };
        made.iter().map(within).max().unwrap()
    };
    assert_eq!(most(&made), 120);
}

#[tokio::test(start_paused = true)]
async fn tokens_are_guessed_before_a_call_and_put_right_after_it() {
    let limits = ModelLimits { tokens_per_minute: Some(1_200), ..ModelLimits::default() };
    let (admission, endpoints) = (admission(|_| {}), endpoints(&[("k", 1.0)], limits));
    // 400 bytes are taken for 100 tokens: the burst of five seconds is used up by the first.
    let first = admission.admit(&request(&endpoints)).await.unwrap();
    let began = Instant::now();
    let second = admission.admit(&request(&endpoints)).await.unwrap();
    assert!((4..=6).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    // In fact it was much more.
    let usage = Usage { input_tokens: 600, output_tokens: 0, ..Usage::default() };
    first.end(&Ended::Answered { usage, first_token_us: 1 });
    let began = Instant::now();
    drop(second);
    let _third = admission.admit(&request(&endpoints)).await.unwrap();
    assert!(began.elapsed() > 20 * SECOND, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn tenants_take_turns_and_a_single_call_waits_for_one_of_the_other() {
    let (admission, endpoints) = (admission(|_| {}), one_key(Some(60)));
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let call = |tenant: &'static str, idx: usize| {
        let (admission, order) = (Arc::clone(&admission), Arc::clone(&order));
        let request = of_tenant(&endpoints, tenant);
        tokio::spawn(async move {
            let permit = admission.admit(&request).await.unwrap();
            order.lock().unwrap().push((tenant, idx));
            answered(permit, SECOND);
        })
    };
    let busy: Vec<_> = (0..1_000).map(|idx| call("busy", idx)).collect();
    tokio::time::sleep(Duration::from_millis(30_500)).await;
    let before = order.lock().unwrap().len();
    call("other", 0).await.unwrap();
    let order = order.lock().unwrap().clone();
    let at = order.iter().position(|made| *made == ("other", 0)).unwrap();
    assert!(at <= before + 1, "{before} calls were made before it, and it was number {at}");
    let busy_order: Vec<_> = order.iter().filter(|(tenant, _)| *tenant == "busy").collect();
    assert!(busy_order.is_sorted(), "the calls of one tenant keep their order");
    busy.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_cannot_have_its_turn_in_time_fails_at_once() {
    let (admission, endpoints) = (admission(|_| {}), one_key(Some(6)));
    let _first = admission.admit(&request(&endpoints)).await.unwrap();
    let began = Instant::now();
    let late = ModelRequest { deadline: Some(began + 5 * SECOND), ..request(&endpoints) };
    let failure = refused(&admission, &late).await.failure;
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(failure.code, ErrorCode::MODEL_OVERLOADED);
    assert!(!failure.retryable);
    let expected = "model \"m\" at 127.0.0.1:1 has no turn for this call for 10.0 s, \
                    its time is up in 5.0 s";
    assert_eq!(failure.message, expected);
    let in_time = ModelRequest { deadline: Some(began + 15 * SECOND), ..request(&endpoints) };
    admission.admit(&in_time).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_passes_in_the_queue_ends_the_wait() {
    let limits = ModelLimits { concurrency_max: Some(1), ..ModelLimits::default() };
    let (admission, endpoints) = (admission(|_| {}), endpoints(&[("k", 1.0)], limits));
    let _held = admission.admit(&request(&endpoints)).await.unwrap();
    let began = Instant::now();
    let waiting = ModelRequest { deadline: Some(began + 3 * SECOND), ..request(&endpoints) };
    let failure = refused(&admission, &waiting).await.failure;
    assert_eq!(began.elapsed().as_secs(), 3);
    let expected = "model \"m\" at 127.0.0.1:1 had no turn for this call within the 3.0 s that \
                    it had";
    assert_eq!(failure.message, expected);
    assert_eq!(only(&admission).queued, 0);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_at_once_with_a_time_and_who_leaves_makes_room() {
    let admission = admission(|limits| limits.queue_max = 2);
    let endpoints = one_key(Some(60));
    // The burst of a key of 60 a minute is 5.
    let _made: Vec<_> = {
        let mut made = Vec::new();
        for _ in 0..5 {
            made.push(admission.admit(&request(&endpoints)).await.unwrap());
        }
        made
    };
    let wait = |_| {
        let (admission, request) = (Arc::clone(&admission), request(&endpoints));
        tokio::spawn(async move { admission.admit(&request).await.map(drop) })
    };
    let waiting: Vec<_> = (0..2).map(wait).collect();
    tokio::task::yield_now().await;
    let full = refused(&admission, &request(&endpoints)).await;
    assert_eq!(full.failure.code, ErrorCode::MODEL_OVERLOADED);
    assert_eq!(full.failure.message, "2 calls wait for model \"m\" at 127.0.0.1:1, limit 2");
    assert!(full.failure.retryable && full.retry_after_ms.is_some_and(|ms| ms > 500));
    assert_eq!(only(&admission).queued, 2);
    waiting[0].abort();
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(only(&admission).queued, 1);
    admission.admit(&request(&endpoints)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_refusal_pauses_the_key_and_calls_come_back_one_by_one() {
    let (admission, endpoints) = (admission(|_| {}), one_key(None));
    let mut first = Vec::new();
    for _ in 0..8 {
        first.push(admission.admit(&request(&endpoints)).await.unwrap());
    }
    let began = Instant::now();
    fails(first.pop().unwrap(), ErrorCode::MODEL_RATE_LIMITED, Some(10_000));
    assert_eq!(only(&admission).paused_ms, 10_000);
    first.into_iter().for_each(drop);
    let under_way = Arc::new(std::sync::Mutex::new((0, 0)));
    let calls = (0..20).map(|_| {
        let (admission, request) = (Arc::clone(&admission), request(&endpoints));
        let under_way = Arc::clone(&under_way);
        tokio::spawn(async move {
            let permit = admission.admit(&request).await.unwrap();
            let now = {
                let mut counts = under_way.lock().unwrap();
                counts.0 += 1;
                counts.1 = counts.1.max(counts.0);
                counts.0
            };
            let at = Instant::now();
            tokio::time::sleep(SECOND).await;
            under_way.lock().unwrap().0 -= 1;
            answered(permit, SECOND);
            (at, now)
        })
    });
    let mut made = Vec::new();
    for call in calls.collect::<Vec<_>>() {
        made.push(call.await.unwrap());
    }
    made.sort();
    assert!(made[0].0 >= began + 10 * SECOND, "nothing before the pause is over");
    assert!(made[1].0 >= made[0].0 + SECOND, "one goes first");
    assert!(under_way.lock().unwrap().1 < 8, "it was halved to 4, and has grown by windows");
}

#[tokio::test(start_paused = true)]
async fn refusals_of_one_wave_halve_the_concurrency_once() {
    let (admission, endpoints) = (admission(|_| {}), one_key(None));
    let mut wave = Vec::new();
    for _ in 0..64 {
        wave.push(admission.admit(&request(&endpoints)).await.unwrap());
    }
    for permit in wave {
        fails(permit, ErrorCode::MODEL_TIMEOUT, None);
    }
    assert_eq!(only(&admission).concurrency, 32);
}

#[tokio::test(start_paused = true)]
async fn a_breaker_opens_by_share_lets_one_probe_through_and_closes_again() {
    let (admission, endpoints) = (admission(|_| {}), one_key(None));
    for idx in 0..20 {
        let permit = admission.admit(&request(&endpoints)).await.unwrap();
        match idx % 2 {
            0 => answered(permit, SECOND),
            _ if idx < 9 => drop(permit),
            _ => drop(fails(permit, ErrorCode::MODEL_SERVER_ERROR, None)),
        }
    }
    assert_eq!(only(&admission).breaker, "closed", "6 of 16 are not half");
    for _ in 0..4 {
        let permit = admission.admit(&request(&endpoints)).await.unwrap();
        fails(permit, ErrorCode::MODEL_SERVER_ERROR, None);
    }
    let open = refused(&admission, &request(&endpoints)).await;
    assert_eq!(open.failure.code, ErrorCode::MODEL_UNAVAILABLE);
    assert_eq!(open.retry_after_ms, Some(1_000));
    assert!(open.failure.retryable);
    assert!(admission.readiness(&endpoints).breaker_open);

    tokio::time::sleep(SECOND).await;
    let probe = admission.admit(&request(&endpoints)).await.unwrap();
    refused(&admission, &request(&endpoints)).await;
    fails(probe, ErrorCode::MODEL_SERVER_ERROR, None);
    let twice = refused(&admission, &request(&endpoints)).await;
    assert_eq!(twice.retry_after_ms, Some(2_000), "it stays open for twice as long");

    tokio::time::sleep(2 * SECOND).await;
    drop(admission.admit(&request(&endpoints)).await.unwrap());
    let probe = admission.admit(&request(&endpoints)).await.unwrap();
    answered(probe, SECOND);
    assert_eq!(only(&admission).breaker, "closed");
    assert!(!admission.readiness(&endpoints).breaker_open);
}

#[tokio::test(start_paused = true)]
async fn who_waits_when_the_breaker_opens_is_told_at_once() {
    let limits = ModelLimits { concurrency_max: Some(12), ..ModelLimits::default() };
    let (admission, endpoints) = (admission(|_| {}), endpoints(&[("k", 1.0)], limits));
    let mut made = Vec::new();
    for _ in 0..12 {
        made.push(admission.admit(&request(&endpoints)).await.unwrap());
    }
    let waiting = {
        let (admission, request) = (Arc::clone(&admission), request(&endpoints));
        tokio::spawn(async move { admission.admit(&request).await.map(drop) })
    };
    tokio::task::yield_now().await;
    for permit in made.drain(..) {
        if fails(permit, ErrorCode::MODEL_CONNECT, None) {
            panic!("there is no other endpoint");
        }
        if only(&admission).breaker == "open" {
            break;
        }
    }
    // The first call to end made room for the one that waited.
    let told = waiting.await.unwrap();
    assert!(told.is_ok());
    let failure = refused(&admission, &request(&endpoints)).await.failure;
    let expected = "model \"m\" at 127.0.0.1:1 is left alone for 1.0 s after failures, \
                    the last: it failed";
    assert_eq!(failure.message, expected);
}

#[tokio::test(start_paused = true)]
async fn a_session_keeps_its_endpoint_and_leaves_it_only_while_it_rests() {
    let admission = admission(|_| {});
    let keys = endpoints(&[("a", 1.0), ("b", 1.0), ("c", 1.0)], ModelLimits::default());
    let mut sessions = [0; 3];
    for affinity in 1..=30 {
        let of = |attempt| ModelRequest { affinity, attempt, ..request(&keys) };
        let own = admission.admit(&of(1)).await.unwrap().endpoint_idx();
        sessions[own] += 1;
        for _ in 0..3 {
            assert_eq!(admission.admit(&of(1)).await.unwrap().endpoint_idx(), own);
        }
        let retried = admission.admit(&of(2)).await.unwrap().endpoint_idx();
        assert_ne!(retried, own, "what failed at one endpoint is tried at another");
    }
    assert!(sessions.iter().all(|count| *count > 2), "{sessions:?}");

    let of = |affinity| ModelRequest { affinity, ..request(&keys) };
    let permit = admission.admit(&of(1)).await.unwrap();
    let own = permit.endpoint_idx();
    assert!(fails(permit, ErrorCode::MODEL_RATE_LIMITED, Some(5_000)), "another could take it");
    let other = admission.admit(&of(1)).await.unwrap().endpoint_idx();
    assert_ne!(other, own);
    tokio::time::sleep(6 * SECOND).await;
    assert_eq!(admission.admit(&of(1)).await.unwrap().endpoint_idx(), own);
}

#[tokio::test(start_paused = true)]
async fn weights_share_the_sessions_out() {
    let admission = admission(|_| {});
    let keys = endpoints(&[("a", 1.0), ("b", 3.0)], ModelLimits::default());
    let mut counts = [0_u32; 2];
    for affinity in 1..=4_000 {
        let request = ModelRequest { affinity, ..request(&keys) };
        counts[admission.admit(&request).await.unwrap().endpoint_idx()] += 1;
    }
    let share = f64::from(counts[1]) / 4_000.0;
    assert!((0.72..0.78).contains(&share), "{share}");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_refused_for_good_is_left_for_another() {
    let admission = admission(|_| {});
    let keys = endpoints(&[("a", 1.0), ("b", 1.0)], ModelLimits::default());
    let of = |affinity| ModelRequest { affinity, ..request(&keys) };
    let permit = admission.admit(&of(7)).await.unwrap();
    let own = permit.endpoint_idx();
    assert!(fails(permit, ErrorCode::MODEL_AUTH, None));
    for affinity in 1..=20 {
        assert_ne!(admission.admit(&of(affinity)).await.unwrap().endpoint_idx(), own);
    }
    // A lone key keeps telling what is wrong with it.
    let lone = one_key(None);
    for _ in 0..20 {
        let permit = admission.admit(&request(&lone)).await.unwrap();
        assert!(!fails(permit, ErrorCode::MODEL_AUTH, None));
    }
}

#[tokio::test(start_paused = true)]
async fn calls_that_wait_for_a_key_that_comes_to_rest_move_to_another() {
    let limits = ModelLimits { concurrency_max: Some(1), ..ModelLimits::default() };
    let admission = admission(|_| {});
    let keys = endpoints(&[("a", 1.0), ("b", 1.0)], limits);
    let mine = |affinity| ModelRequest { affinity, ..request(&keys) };
    let permit = admission.admit(&mine(7)).await.unwrap();
    let own = permit.endpoint_idx();
    let waiting = {
        let (admission, request) = (Arc::clone(&admission), mine(7));
        tokio::spawn(async move { admission.admit(&request).await.map(|it| it.endpoint_idx()) })
    };
    tokio::task::yield_now().await;
    assert_eq!(admission.report().iter().map(|report| report.queued).sum::<usize>(), 1);
    fails(permit, ErrorCode::MODEL_RATE_LIMITED, Some(60_000));
    let began = Instant::now();
    assert_ne!(waiting.await.unwrap().unwrap(), own);
    assert!(began.elapsed() < SECOND);
}

fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    let pair = |(name, value): &(&str, &str)| {
        (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap())
    };
    lines.iter().map(pair).collect()
}

#[tokio::test(start_paused = true)]
async fn limits_are_learnt_from_headers() {
    let sets: [&[(&str, &str)]; 4] = [
        &[
            ("x-ratelimit-limit-requests", "60"),
            ("x-ratelimit-remaining-requests", "59"),
            ("x-ratelimit-limit-tokens", "9000"),
            ("x-ratelimit-reset-requests", "1s"),
        ],
        &[
            ("anthropic-ratelimit-requests-limit", "60"),
            ("anthropic-ratelimit-tokens-limit", "9000"),
            ("anthropic-ratelimit-requests-reset", "2026-11-25T03:00:00Z"),
        ],
        &[
            ("ratelimit-limit", "60"),
            ("ratelimit-reset", "3"),
            ("x-ratelimit-limit-tokens", "9000"),
        ],
        &[("ratelimit-policy", "\"a\";q=10;w=10"), ("x-ratelimit-limit-tokens", "9000")],
    ];
    for lines in sets {
        let (admission, endpoints) = (admission(|_| {}), one_key(None));
        let permit = admission.admit(&request(&endpoints)).await.unwrap();
        permit.hear(&Rates::read(&headers(lines), 1_790_000_000).unwrap());
        let report = only(&admission);
        assert_eq!(report.requests_per_minute, Some(60), "{lines:?}");
        assert_eq!(report.tokens_per_minute, Some(9_000), "{lines:?}");
    }
    assert_eq!(Rates::read(&headers(&[("content-type", "text/plain")]), 0), None);
}

#[tokio::test(start_paused = true)]
async fn headers_that_lie_do_no_harm() {
    let numbers =
        ["-5", "NaN", "inf", "1e300", "99999999999999999999999", "", "soon", "0", "\u{7f}"];
    for number in numbers {
        let (admission, endpoints) = (admission(|_| {}), one_key(Some(600)));
        let mut map = HeaderMap::new();
        for name in [
            "x-ratelimit-limit-requests",
            "x-ratelimit-remaining-requests",
            "x-ratelimit-limit-tokens",
            "x-ratelimit-remaining-tokens",
            "ratelimit-reset",
            "ratelimit",
            "ratelimit-policy",
        ] {
            let Ok(value) = HeaderValue::from_bytes(number.as_bytes()) else { continue };
            map.insert(name.parse::<HeaderName>().unwrap(), value);
        }
        let began = Instant::now();
        for _ in 0..100 {
            let permit = admission.admit(&request(&endpoints)).await.unwrap();
            if let Some(rates) = Rates::read(&map, 1_790_000_000) {
                permit.hear(&rates);
            }
            answered(permit, SECOND);
        }
        // 600 a minute are 10 a second, whatever the server says is left.
        assert!(began.elapsed() <= 11 * SECOND, "{number:?}: {:?}", began.elapsed());
        assert_eq!(only(&admission).requests_per_minute, Some(600), "{number:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_others_use_of_a_key_is_noticed_once() {
    let (admission, endpoints) = (admission(|_| {}), one_key(Some(600)));
    let mut permits = Vec::new();
    for _ in 0..10 {
        permits.push(admission.admit(&request(&endpoints)).await.unwrap());
    }
    // 40 of the burst of 50 are left by our own count; the server knows of 30 more.
    for (idx, permit) in permits.iter().enumerate() {
        let left = (49 - idx - 30).to_string();
        let lines = [("x-ratelimit-remaining-requests", left.as_str())];
        permit.hear(&Rates::read(&headers(&lines), 0).unwrap());
    }
    let began = Instant::now();
    for _ in 0..10 {
        permits.push(admission.admit(&request(&endpoints)).await.unwrap());
    }
    assert_eq!(began.elapsed(), Duration::ZERO, "10 are left at once");
    permits.push(admission.admit(&request(&endpoints)).await.unwrap());
    assert!(began.elapsed() > Duration::ZERO, "and not more");
}

#[tokio::test(start_paused = true)]
async fn retries_are_a_share_of_the_calls() {
    let admission = admission(|limits| limits.retry_reserve = 5.0);
    let endpoints = one_key(None);
    let retry = ModelRequest { attempt: 2, ..request(&endpoints) };
    for _ in 0..5 {
        answered(admission.admit(&retry).await.unwrap(), SECOND);
    }
    let none_left = refused(&admission, &retry).await.failure;
    assert_eq!(none_left.code, ErrorCode::MODEL_UNAVAILABLE);
    assert!(none_left.retryable, "later, and at once by another model");
    let expected =
        "model \"m\" at 127.0.0.1:1 was not asked again: retries may be 20 % of its calls";
    assert_eq!(none_left.message, expected);
    for _ in 0..10 {
        answered(admission.admit(&request(&endpoints)).await.unwrap(), SECOND);
    }
    for _ in 0..2 {
        answered(admission.admit(&retry).await.unwrap(), SECOND);
    }
    refused(&admission, &retry).await;
    tokio::time::sleep(SECOND).await;
    answered(admission.admit(&retry).await.unwrap(), SECOND);
}

#[tokio::test(start_paused = true)]
async fn hedges_are_a_share_of_the_calls_and_need_time() {
    let admission = admission(|_| {});
    let keys = endpoints(&[("a", 1.0), ("b", 1.0)], ModelLimits::default());
    let of = || ModelRequest { affinity: 7, ..request(&keys) };
    let mut hedged = 0;
    let mut late = None;
    for _ in 0..400 {
        let permit = admission.admit(&of()).await.unwrap();
        late = admission.late_after(&permit).or(late);
        if let Some(second) = admission.hedge(&of(), &permit) {
            assert_ne!(second.endpoint_idx(), permit.endpoint_idx());
            hedged += 1;
        }
        answered(permit, SECOND);
    }
    assert!((18..=20).contains(&hedged), "{hedged} of 400");
    let late = late.unwrap();
    assert!(late >= SECOND && late < SECOND * 5 / 4, "{late:?}");
    // No second call where there is no time for it.
    for _ in 0..40 {
        answered(admission.admit(&of()).await.unwrap(), SECOND);
    }
    let permit = admission.admit(&of()).await.unwrap();
    let soon = ModelRequest { deadline: Some(Instant::now() + SECOND / 2), ..of() };
    assert!(admission.hedge(&soon, &permit).is_none());
    assert!(admission.hedge(&of(), &permit).is_some());
}

#[tokio::test(start_paused = true)]
async fn the_channels_unused_for_longest_are_forgotten() {
    let admission = admission(|limits| limits.channels_max = 2);
    let set = |key: &str| endpoints(&[(key, 1.0)], ModelLimits::default());
    let (a, b, c) = (set("a"), set("b"), set("c"));
    answered(admission.admit(&request(&a)).await.unwrap(), SECOND);
    tokio::time::sleep(SECOND).await;
    let held = admission.admit(&request(&b)).await.unwrap();
    let also_held = admission.admit(&request(&c)).await.unwrap();
    assert_eq!(admission.report().len(), 2);
    let failure = refused(&admission, &request(&a)).await.failure;
    let expected = "model \"m\" at 127.0.0.1:1 is one key too many in use at once, limit 2";
    assert_eq!(failure.message, expected);
    drop((held, also_held));
    admission.admit(&request(&a)).await.unwrap();
}

#[test]
fn limits_that_cannot_be_are_refused() {
    let zero = AdmissionLimits { queue_max: 0, ..AdmissionLimits::default() };
    let failure = Admission::new(zero).unwrap_err();
    assert_eq!(failure.message, "a limit of admission is 0, at least 1 is needed");
    let share = AdmissionLimits { retry_share: 1.5, ..AdmissionLimits::default() };
    let failure = Admission::new(share).unwrap_err();
    assert_eq!(failure.message, "a share of admission is 1.5, must be from 0 to 1");
}

/// CPU time of this thread in nanoseconds.
fn cpu_ns() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_call_that_need_not_wait_goes_at_once_and_leaves_nothing_behind() {
    let limits = ModelLimits {
        requests_per_minute: Some(1_000_000_000),
        tokens_per_minute: Some(1_000_000_000_000),
        concurrency_max: Some(1_000),
    };
    let admission = admission(|_| {});
    let sets = [&[("a", 1.0)][..], &[("a", 1.0), ("b", 1.0), ("c", 1.0), ("d", 1.0)][..]];
    for keys in sets {
        let request = ModelRequest { affinity: 7, ..request(&endpoints(keys, limits)) };
        let before = cpu_ns();
        for _ in 0..100_000 {
            answered(admission.admit(&request).await.unwrap(), SECOND);
        }
        let ns = (cpu_ns() - before) / 100_000;
        println!("{} keys: {ns} ns of CPU for a call, admission and end", keys.len());
    }
    assert_eq!(admission.report().iter().map(|report| report.calls).sum::<u64>(), 200_000);
    assert!(admission.report().iter().all(|it| it.in_flight == 0 && it.queued == 0));
}
