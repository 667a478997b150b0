//! Starting, dying, starting again, closing.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use mainspring_mcp::StdioConfig;
use serde_json::{Value, json};

use crate::support::{alive, ask, broker, call, config, gone, limited, text};

#[tokio::test]
async fn equal_configurations_share_one_process_and_others_do_not() {
    let broker = broker();
    let (first, second) = (broker.server(config("echo.py")), broker.server(config("echo.py")));
    let mut changed = config("echo.py");
    changed.env.insert("TENANT".into(), "b".into());
    let third = broker.server(changed);
    let pids = (text(&first, "pid").await, text(&second, "pid").await, text(&third, "pid").await);
    assert_eq!(pids.0, pids.1);
    assert_ne!(pids.0, pids.2);
}

#[tokio::test]
async fn a_server_of_the_newest_revision_alone_works() {
    let server = broker().server(config("modern.py"));
    assert_eq!(server.tools().await.unwrap().len(), 1);
    assert_eq!(text(&server, "hello").await, "hello from 2026");
}

#[tokio::test]
async fn a_server_that_ends_on_the_probe_is_started_again_without_it() {
    let server = broker().server(config("strict.py"));
    assert_eq!(text(&server, "hello").await, "hello from 2025");
}

#[tokio::test]
async fn a_death_fails_the_calls_in_flight_and_the_next_call_starts_anew() {
    let server = broker().server(config("echo.py"));
    let before = text(&server, "pid").await;
    let doomed = join_all(["hold", "hold", "die"].map(|tool| ask(&server, tool))).await;
    for outcome in doomed {
        let error = outcome.unwrap_err();
        assert_eq!((error.code(), error.retryable()), ("mcp_exited", true));
        assert_eq!(error.stderr(), Some("out of luck\n"));
        assert_eq!(
            error.to_string(),
            "mcp server \"echo\" ended (exit status: 7) while it was in use; its stderr ends \
             \"out of luck\"\nhint: the next call starts the server again"
        );
    }
    let after = join_all((0..8).map(|_| text(&server, "pid"))).await;
    assert_ne!(after[0], before);
    assert!(after.iter().all(|pid| *pid == after[0]), "one start for everybody: {after:?}");
}

#[tokio::test]
async fn only_safe_variables_are_inherited_and_configured_ones_are_added() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config("echo.py");
    config.env.insert("TOKEN".into(), "secret".into());
    config.cwd = Some(folder.path().to_owned());
    assert!(!format!("{config:?}").contains("secret"));
    let server = broker().server(config);
    let seen: BTreeMap<String, Value> = serde_json::from_str(&text(&server, "env").await).unwrap();
    assert_eq!(seen["TOKEN"], json!("secret"));
    assert!(seen.contains_key("PATH"));
    assert!(!seen.contains_key("CARGO_PKG_NAME"), "{:?}", seen.keys());
    let cwd = folder.path().canonicalize().unwrap();
    assert_eq!(text(&server, "cwd").await, cwd.to_str().unwrap());
}

#[tokio::test]
async fn close_ends_the_servers_and_later_use_says_so() {
    let broker = broker();
    let polite = broker.server(config("echo.py"));
    let stubborn = broker.server(limited("stays.py", |limits| limits.close_ms_max = 20));
    let pids = [text(&polite, "pid").await, text(&stubborn, "pid").await];
    let in_flight = tokio::spawn({
        let polite = polite.clone();
        async move { ask(&polite, "hold").await }
    });
    crate::support::until_text(&polite, "held", "1").await;
    broker.close().await;
    assert_eq!(pids.map(|pid| alive(&pid)), [false, false]);
    let unused = broker.server(config("strict.py"));
    for outcome in [in_flight.await.unwrap(), ask(&stubborn, "pid").await, ask(&unused, "x").await]
    {
        let error = outcome.unwrap_err();
        assert_eq!((error.code(), error.retryable()), ("mcp_exited", false));
        assert!(error.message().ends_with("cannot be used: its broker was closed"), "{error}");
    }
}

#[tokio::test]
async fn the_last_handle_takes_the_server_with_it() {
    let broker = broker();
    let server = broker.server(config("parent.py"));
    drop(broker);
    let pids = text(&server, "pids").await;
    drop(server);
    for pid in pids.split(' ') {
        gone(pid).await;
    }
}

#[test]
fn a_runtime_that_goes_away_takes_the_servers_with_it() {
    let home = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let broker = mainspring_mcp::McpBroker::new(home.handle().clone()).unwrap();
    let server = broker.server(config("parent.py"));
    let pids = home.block_on(text(&server, "pids"));
    drop(home);
    let guest = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    guest.block_on(async {
        for pid in pids.split(' ') {
            gone(pid).await;
        }
        let error = server.call(call("pids", json!({}))).await.unwrap_err();
        assert_eq!(error.code(), "mcp_exited");
    });
}

#[test]
fn a_configuration_is_read_from_text_and_refuses_unknown_fields() {
    let read = serde_json::from_str::<StdioConfig>;
    let config = read(r#"{"name": "a", "command": "b", "limits": {"close_ms_max": 5}}"#).unwrap();
    assert_eq!(config.limits.close_ms_max, 5);
    assert_eq!(config.limits.line_bytes_max, 16 << 20);
    assert!(read(r#"{"name": "a", "command": "b", "arg": []}"#).is_err());
    assert!(read(r#"{"name": "a", "command": "b", "limits": {"x": 5}}"#).is_err());
}
