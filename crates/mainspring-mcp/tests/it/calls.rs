//! Tools listed and called on servers that behave.

use std::time::Duration;

use futures_util::future::join_all;
use mainspring_mcp::{McpError, McpResult, McpTool};
use serde_json::{json, value::RawValue};

use crate::support::{ask, broker, call, config, limited, text, until_text};

#[tokio::test]
async fn tools_of_all_pages_are_listed_with_their_hints() {
    let server = broker().server(config("echo.py"));
    let tools = server.tools().await.unwrap();
    assert_eq!(tools.len(), 17);
    assert_eq!(
        tools[0],
        McpTool {
            name: "echo".into(),
            description: "does echo".into(),
            input_schema: json!({"type": "object"}),
            read_only_hint: Some(true),
            idempotent_hint: Some(true),
            destructive_hint: None,
        }
    );
    assert_eq!(tools[16].name, "media");
}

#[tokio::test]
async fn the_list_is_asked_again_only_when_the_server_says_that_it_changed() {
    let server = broker().server(config("echo.py"));
    let first = server.tools().await.unwrap();
    let second = server.tools().await.unwrap();
    assert!(std::sync::Arc::ptr_eq(&first, &second));
    assert_eq!(text(&server, "grow").await, "grown");
    let grown =
        async { while !server.tools().await.unwrap().iter().any(|tool| tool.name == "late") {} };
    tokio::time::timeout(crate::support::LONG, grown).await.unwrap();
}

#[tokio::test]
async fn arguments_and_the_effect_id_reach_the_tool() {
    let server = broker().server(config("echo.py"));
    let arguments = json!({"a": [1, 2.5, "ü\n"], "b": null});
    let echoed = server.call(call("echo", arguments.clone())).await.unwrap();
    assert!(!echoed.is_error);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&echoed.text).unwrap(), arguments);
    assert_eq!(text(&server, "meta").await, "effect-1");
}

#[tokio::test]
async fn every_kind_of_content_becomes_text() {
    let server = broker().server(config("echo.py"));
    let expected = "one\n[image image/png, 5 bytes]\n[audio audio/wav, 3 bytes]\ntwo\n\
                    [resource file:///a text/plain, 3 bytes]\n[link file:///b \"bee\"]";
    assert_eq!(text(&server, "media").await, expected);
    assert_eq!(text(&server, "structured").await, r#"{"rows":2}"#);
    assert_eq!(text(&server, "empty").await, "");
}

#[tokio::test]
async fn a_tool_that_says_it_failed_is_a_result() {
    let server = broker().server(config("echo.py"));
    let expected = McpResult { text: "no such row".into(), is_error: true };
    assert_eq!(ask(&server, "fail").await.unwrap(), expected);
}

#[tokio::test]
async fn an_unknown_tool_is_named_with_the_known_ones_once_they_were_listed() {
    let server = broker().server(config("strict.py"));
    let blind = ask(&server, "nope").await.unwrap_err();
    assert_eq!(blind.code(), "mcp_protocol_error");
    assert_eq!(
        blind.to_string(),
        "tool \"nope\" of mcp server \"strict\" failed: the server answered error -32602: \
         unknown tool nope"
    );
    server.tools().await.unwrap();
    let told = ask(&server, "nope").await.unwrap_err();
    assert_eq!((told.code(), told.retryable()), ("mcp_unknown_tool", false));
    assert_eq!(told.to_string(), "mcp server \"strict\" has no tool \"nope\"\nhint: it has: hello");
}

#[tokio::test]
async fn arguments_that_are_no_object_are_refused_before_they_are_sent() {
    let server = broker().server(config("echo.py"));
    let mut wrong = call("echo", json!({}));
    wrong.arguments = RawValue::from_string("[1]".into()).unwrap();
    let error = server.call(wrong).await.unwrap_err();
    assert_eq!(error.code(), "mcp_protocol_error");
    assert!(error.message().contains("arguments: invalid type: sequence"), "{error}");
}

#[tokio::test]
async fn a_deadline_costs_its_call_alone_and_is_told_to_the_server() {
    let server = broker().server(config("echo.py"));
    server.tools().await.unwrap();
    let mut late = call("hold", json!({}));
    late.timeout = Duration::from_millis(20);
    let (late, echoed) = tokio::join!(server.call(late), ask(&server, "echo"));
    let error = late.unwrap_err();
    assert_eq!((error.code(), error.retryable()), ("mcp_timeout", true));
    assert_eq!(
        error.to_string(),
        "tool \"hold\" of mcp server \"echo\" gave no answer, limit 0.02 s\n\
         hint: raise the timeout of the call"
    );
    assert_eq!(echoed.unwrap().text, "{}");
    until_text(&server, "cancelled", "1").await;
}

#[tokio::test]
async fn a_dropped_call_is_cancelled_at_the_server() {
    let server = broker().server(config("echo.py"));
    let held = tokio::spawn({
        let server = server.clone();
        async move { ask(&server, "hold").await }
    });
    until_text(&server, "held", "1").await;
    held.abort();
    until_text(&server, "cancelled", "1").await;
}

#[tokio::test]
async fn answers_out_of_order_reach_their_calls() {
    let mut config = config("reorder.py");
    config.args.push("40".into());
    let server = broker().server(config);
    let words: Vec<String> = (0..40).map(|number| format!("word{number}")).collect();
    let calls = words.iter().map(|word| server.call(call("collect", json!({"word": word}))));
    let texts: Vec<String> =
        join_all(calls).await.into_iter().map(|result| result.unwrap().text).collect();
    assert_eq!(texts, words);
}

#[tokio::test]
async fn a_call_past_the_limits_waits_and_one_more_is_refused() {
    let server = broker().server(limited("echo.py", |limits| {
        limits.concurrent_calls_max = 1;
        limits.waiting_calls_max = 1;
    }));
    // The server is up before the first call is held, so that the others cannot come before it.
    text(&server, "pid").await;
    let hold = || {
        let server = server.clone();
        tokio::spawn(async move { ask(&server, "hold").await })
    };
    let mut held = hold();
    tokio::task::yield_now().await;
    // With the first call held, of these two one waits and the other is refused.
    let refused = loop {
        if held.is_finished() {
            held = hold();
            tokio::task::yield_now().await;
        }
        let mut short = call("echo", json!({}));
        short.timeout = Duration::from_millis(200);
        let (one, other) = tokio::join!(server.call(short.clone()), server.call(short));
        let errors: Vec<McpError> = [one, other].into_iter().filter_map(Result::err).collect();
        if let Some(full) = errors.into_iter().find(|error| error.code() == "mcp_limit_reached") {
            break full;
        }
    };
    assert!(refused.retryable());
    assert_eq!(
        refused.to_string(),
        "queue for tool \"echo\" of mcp server \"echo\" is 2 calls long, waiting_calls_max is 1\n\
         hint: raise McpLimits.waiting_calls_max"
    );
    held.abort();
    let freed = async { while ask(&server, "echo").await.is_err() {} };
    tokio::time::timeout(crate::support::LONG, freed).await.unwrap();
}

#[test]
fn handles_work_from_other_threads_and_runtimes() {
    let home = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let broker = mainspring_mcp::McpBroker::new(home.handle().clone()).unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let driver = std::thread::spawn(move || home.block_on(stopped));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let server = broker.server(config("echo.py"));
            std::thread::spawn(move || {
                // Neither timers nor I/O here: the caller only waits on channels.
                let guest = tokio::runtime::Builder::new_current_thread().build().unwrap();
                guest.block_on(async move { text(&server, "pid").await })
            })
        })
        .collect();
    let mut pids: Vec<String> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    pids.dedup();
    assert_eq!(pids.len(), 1, "one process for all: {pids:?}");
    stop.send(()).unwrap();
    driver.join().unwrap().unwrap();
}
