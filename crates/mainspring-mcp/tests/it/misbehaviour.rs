//! Servers that do it wrong.

use serde_json::json;

use crate::support::{ask, broker, call, config, limited, text};

#[tokio::test]
async fn noise_on_standard_output_is_skipped() {
    let server = broker().server(config("noisy.py"));
    assert_eq!(server.tools().await.unwrap().len(), 1);
    assert_eq!(text(&server, "hello").await, "hello");
}

#[tokio::test]
async fn an_early_exit_says_status_and_stderr() {
    let error = broker().server(config("exits.py")).tools().await.unwrap_err();
    assert_eq!((error.code(), error.retryable()), ("mcp_start_failed", false));
    assert_eq!(
        error.to_string(),
        "mcp server \"exits\" did not start: it ended (exit status: 3) before the handshake; its \
         stderr ends \"cannot open the database\"\n\
         hint: run \"python3\" with its arguments by hand to see what it says"
    );
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    let server = broker().server(limited("deaf.py", |limits| limits.start_ms_max = 300));
    let error = server.tools().await.unwrap_err();
    assert_eq!((error.code(), error.retryable()), ("mcp_start_failed", true));
    assert_eq!(
        error.message(),
        "mcp server \"deaf\" did not start: no answer to the handshake in 300 ms"
    );
}

#[tokio::test]
async fn a_deadline_during_the_start_says_so() {
    let server = broker().server(config("deaf.py"));
    let mut short = call("x", json!({}));
    short.timeout = std::time::Duration::from_millis(50);
    let error = server.call(short).await.unwrap_err();
    assert_eq!(error.code(), "mcp_timeout");
    assert!(error.hint().unwrap().starts_with("the server was still starting"), "{error}");
}

#[tokio::test]
async fn a_command_that_cannot_be_run_is_explained() {
    let broker = broker();
    let mut wrong = config("echo.py");
    wrong.command = "no-such-command".into();
    let error = broker.server(wrong.clone()).tools().await.unwrap_err();
    assert_eq!((error.code(), error.retryable()), ("mcp_start_failed", false));
    assert_eq!(
        error.to_string(),
        "mcp server \"echo\" did not start: command \"no-such-command\" was not found in PATH\n\
         hint: install it, or give its full path in command"
    );
    wrong.command = "./echo.py".into();
    let error = broker.server(wrong.clone()).tools().await.unwrap_err();
    assert!(error.message().contains("is not a file that can be executed"), "{error}");
    wrong.cwd = Some("/no/such/folder".into());
    let error = broker.server(wrong).tools().await.unwrap_err();
    assert!(error.message().contains("is not a folder"), "{error}");
}

#[tokio::test]
async fn a_line_without_end_is_cut_off_and_the_server_starts_again() {
    let server = broker().server(limited("huge.py", |limits| limits.line_bytes_max = 1 << 20));
    assert_eq!(text(&server, "hello").await, "hello");
    let error = ask(&server, "flood").await.unwrap_err();
    assert_eq!((error.code(), error.retryable()), ("mcp_limit_reached", false));
    assert!(error.message().ends_with("bytes, line_bytes_max is 1048576"), "{error}");
    assert_eq!(text(&server, "hello").await, "hello");
}

#[tokio::test]
async fn a_server_that_does_not_read_cannot_fill_the_memory() {
    let server = broker().server(limited("huge.py", |limits| limits.write_bytes_max = 1 << 20));
    assert_eq!(text(&server, "hello").await, "hello");
    let asleep = tokio::spawn({
        let server = server.clone();
        async move { ask(&server, "sleep").await }
    });
    let big = || {
        let mut big = call("hello", json!({"filler": "x".repeat(300_000)}));
        big.timeout = std::time::Duration::from_millis(100);
        server.call(big)
    };
    let error = loop {
        match big().await {
            Err(error) if error.code() == "mcp_limit_reached" => break error,
            Ok(_) | Err(_) => {}
        }
    };
    assert!(error.retryable());
    assert!(error.message().ends_with("bytes, write_bytes_max is 1048576"), "{error}");
    asleep.abort();
}

#[tokio::test]
async fn a_result_too_long_costs_its_call_alone() {
    let server = broker().server(limited("echo.py", |limits| limits.result_bytes_max = 1_000));
    let error = server.call(call("size", json!({"bytes": 1_001}))).await.unwrap_err();
    assert_eq!((error.code(), error.retryable()), ("mcp_limit_reached", false));
    assert_eq!(
        error.to_string(),
        "result of tool \"size\" of mcp server \"echo\" is 1001 bytes, result_bytes_max is 1000\n\
         hint: raise McpLimits.result_bytes_max"
    );
    let fits = server.call(call("size", json!({"bytes": 1_000}))).await.unwrap();
    assert_eq!(fits.text.len(), 1_000);
}

#[tokio::test]
async fn answers_that_are_no_tool_results_cost_their_call_alone() {
    let server = broker().server(config("echo.py"));
    let strange = ask(&server, "strange").await.unwrap_err();
    assert_eq!(strange.code(), "mcp_protocol_error");
    assert!(strange.message().contains("does not follow the protocol"), "{strange}");
    let question = ask(&server, "ask").await.unwrap_err();
    assert_eq!(question.code(), "mcp_protocol_error");
    assert!(question.message().contains("asks for input"), "{question}");
    assert_eq!(text(&server, "echo").await, "{}");
}

#[tokio::test]
async fn a_list_of_tools_without_end_is_refused() {
    let server = broker().server(limited("endless.py", |limits| limits.tools_count_max = 10));
    let error = server.tools().await.unwrap_err();
    assert_eq!(error.code(), "mcp_limit_reached");
    assert_eq!(
        error.message(),
        "list of tools of mcp server \"endless\" is longer than 10 tools, tools_count_max is 10"
    );
}
