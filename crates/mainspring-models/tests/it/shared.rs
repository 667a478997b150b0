//! Several endpoints of one model, over real sockets: hedging, keys that are refused, limits that
//! servers tell.

use std::sync::Arc;

use mainspring_models::budget::{Account, BudgetPath, Ledger, SecondCall};
use mainspring_models::{
    AdmissionLimits, CallPolicy, Endpoint, EndpointSet, ModelRequest, Weighted,
};
use mainspring_session::{Amount, Api, Budget, ErrorCode, HedgeNote, ModelLimits, Period, Price};

use crate::calls::streamed;
use crate::server::{STREAM_HEAD, Server, Step, answer, response};
use crate::{KEY, call_with_deltas, client, request};

const PRICE: Price =
    Price { input_usd: 2e6, output_usd: 5e6, cached_usd: None, cache_write_usd: None, long: None };

/// Calls after which late first tokens can be told and one second call is allowed.
const WARM: usize = 40;

fn policy(hedge: bool) -> CallPolicy {
    CallPolicy { hedge: Some(hedge), price: Some(PRICE), ..CallPolicy::default() }
}

/// A set whose first endpoint gets every call that it can take.
fn set(servers: [&Server; 2], policy: CallPolicy) -> Arc<EndpointSet> {
    let weighted = |(server, weight): (&Server, f64)| Weighted {
        endpoint: Arc::new(
            Endpoint::new(Api::ChatCompletions, &server.base_url, Some(KEY), &[]).unwrap(),
        ),
        weight,
    };
    let [first, second] = servers;
    let members = [(first, 1e9), (second, 1e-9)].map(weighted).into();
    Arc::new(EndpointSet::new("m", members, policy).unwrap())
}

fn to(endpoints: &Arc<EndpointSet>, stream: bool) -> ModelRequest {
    ModelRequest { endpoints: Arc::clone(endpoints), ..request("http://127.0.0.1:1/v1", stream) }
}

#[tokio::test]
async fn a_late_first_token_is_hedged_and_the_loser_is_cancelled_and_paid_for() {
    for stream in [false, true] {
        let well = match stream {
            false => Step::Answer(vec![answer("first")]),
            true => Step::Answer(streamed(&["first"], 10_000)),
        };
        let begun = if stream { STREAM_HEAD.as_bytes().to_vec() } else { Vec::new() };
        let mut script = vec![well; WARM];
        script.push(Step::Hang(begun));
        let mut slow = Server::start(script).await;
        let other = match stream {
            false => Step::Answer(vec![answer("second")]),
            true => Step::Answer(streamed(&["sec", "ond"], 10_000)),
        };
        let other = Server::start(vec![other]).await;
        let client = client();
        let warm = set([&slow, &other], policy(false));
        for _ in 0..WARM {
            client.call(to(&warm, stream), &mut |_| {}).await.unwrap();
        }
        let hedged = set([&slow, &other], policy(true));
        let (reply, texts) = call_with_deltas(&client, to(&hedged, stream)).await;
        let reply = reply.unwrap();
        assert_eq!(reply.answer.text, "second");
        assert_eq!(texts.concat(), if stream { "second" } else { "" });
        assert_eq!(reply.notes.endpoint, 1);
        // What the server said that it read, at two dollars a token; a stream tells nothing here.
        let cost = if stream { reply.notes.hedge.unwrap().cost_usd_estimate } else { Some(6.0) };
        let note = HedgeNote { endpoint: 1, won: true, cost_usd_estimate: cost };
        assert_eq!(reply.notes.hedge, Some(note));
        assert!(cost.is_some_and(|usd| usd > 0.0));
        slow.connection_gone().await;
        let reports = client.report();
        assert_eq!((reports[0].in_flight, reports[1].in_flight), (0, 0));
        assert_eq!(reports[1].hedged, 1);
    }
}

#[tokio::test]
async fn a_second_call_is_made_only_if_somebody_can_pay_for_it() {
    let account = Account::tenant("acme", Period::Ever, 0);
    let path = BudgetPath::new(vec![account.clone()]);
    let call = Amount { tokens: 100, ..Amount::one_call() };
    for (calls, hedged) in [(1, 0), (2, 1)] {
        let mut script = vec![Step::Answer(vec![answer("first")]); WARM];
        script.push(Step::Hang(Vec::new()));
        let slow = Server::start(script).await;
        let other = Server::start(vec![Step::Answer(vec![answer("second")])]).await;
        let client = client();
        let warm = set([&slow, &other], policy(false));
        for _ in 0..WARM {
            client.call(to(&warm, false), &mut |_| {}).await.unwrap();
        }
        let ledger = Ledger::default();
        let budget = Budget { calls: Some(calls), ..Budget::default() };
        ledger.open(&account, budget, Amount::default());
        let first = ledger.reserve(&path, call).unwrap();
        let second = SecondCall { ledger: ledger.clone(), path: path.clone(), wanted: call.into() };
        let request = ModelRequest {
            second: Some(Arc::new(second)),
            first_token_ms_max: if hedged == 0 { 1_000 } else { 60_000 },
            ..to(&set([&slow, &other], policy(true)), false)
        };
        let result = client.call(request, &mut |_| {}).await;
        assert_eq!(result.is_ok(), hedged == 1, "{result:?}");
        assert_eq!(client.report().get(1).map_or(0, |report| report.hedged), hedged);
        // Whoever settles the first counts the second.
        assert_eq!(ledger.report(&account).unwrap().calls, 1);
        first.settle(call);
        assert_eq!(ledger.report(&account).unwrap().spent, call);
    }
}

#[tokio::test]
async fn a_key_that_is_refused_leaves_its_calls_to_the_other() {
    let refusing = Server::start(vec![Step::Answer(vec![response("401 No", "", "{}")])]).await;
    let other = Server::start(vec![Step::Answer(vec![answer("yes")])]).await;
    let (client, keys) = (client(), set([&refusing, &other], policy(false)));
    let failure = client.call(to(&keys, false), &mut |_| {}).await.unwrap_err().failure;
    assert_eq!(failure.code, ErrorCode::MODEL_AUTH);
    assert!(failure.retryable, "another key may do");
    for attempt in [2, 1] {
        let request = ModelRequest { attempt, ..to(&keys, false) };
        let reply = client.call(request, &mut |_| {}).await.unwrap();
        assert_eq!((reply.answer.text.as_str(), reply.notes.endpoint), ("yes", 1));
    }
    assert_eq!(client.report()[0].breaker, "open");
}

#[tokio::test]
async fn what_a_server_says_of_its_limits_is_learnt_and_reported_without_the_key() {
    let headers = "content-type: application/json\r\nx-ratelimit-limit-requests: 600\r\n\
                   x-ratelimit-remaining-requests: 599\r\nx-ratelimit-limit-tokens: 90000\r\n";
    let body = r#"{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}]}"#;
    let server = Server::start(vec![Step::Answer(vec![response("200 OK", headers, body)])]).await;
    let client = client();
    client.call(request(&server.base_url, false), &mut |_| {}).await.unwrap();
    let reports = client.report();
    assert_eq!(reports.len(), 1);
    assert_eq!(reports[0].requests_per_minute, Some(600));
    assert_eq!(reports[0].tokens_per_minute, Some(90_000));
    assert_eq!((reports[0].calls, reports[0].failed, reports[0].in_flight), (1, 0, 0));
    assert!(reports[0].first_token_p95_ms.is_some());
    assert!(!format!("{reports:?}").contains(KEY));
}

#[test]
fn sets_that_cannot_be_are_refused() {
    let endpoint = |key: &str| {
        Arc::new(Endpoint::new(Api::ChatCompletions, "http://h/v1", Some(key), &[]).unwrap())
    };
    let refused = |members: Vec<Weighted>, policy: CallPolicy| {
        EndpointSet::new("m", members, policy).unwrap_err().to_text()
    };
    let weighted = |key, weight| Weighted { endpoint: endpoint(key), weight };
    let free = CallPolicy::default;
    assert_eq!(refused(vec![], free()), "model \"m\" has 0 endpoints, allowed are 1 to 64");
    for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let expected = format!(
            "model \"m\" gives its endpoint at h the weight {weight}, must be above 0 and finite\n\
             hint: leave out an endpoint that is not to be used"
        );
        assert_eq!(refused(vec![weighted("a", weight)], free()), expected);
    }
    let twice = vec![weighted("a", 1.0), weighted("b", 1.0), weighted("a", 2.0)];
    let expected = "model \"m\" has the same endpoint at h with one key twice\n\
                    hint: give it once, with the sum of the weights";
    assert_eq!(refused(twice, free()), expected);
    let limits = ModelLimits { tokens_per_minute: Some(0), ..ModelLimits::default() };
    let expected = "model \"m\" has the limit tokens_per_minute 0, at least 1 is needed\n\
                    hint: leave it out where there is no limit";
    let none = CallPolicy { limits, ..CallPolicy::default() };
    assert_eq!(refused(vec![weighted("a", 1.0)], none), expected);
    assert_eq!(AdmissionLimits::default().queue_max, 100_000);
}
