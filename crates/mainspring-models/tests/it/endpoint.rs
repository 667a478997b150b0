//! Addresses and keys: what is taken, what is refused, and what is never shown.

use mainspring_models::Endpoint;
use mainspring_session::Api;
use mainspring_session::ErrorCode;

#[test]
fn the_path_of_the_call_is_added_once() {
    for (base_url, shown, host, is_loopback) in [
        (
            "https://api.openai.com/v1",
            "https://api.openai.com/v1/chat/completions",
            "api.openai.com",
            false,
        ),
        (
            " http://127.0.0.1:8080/v1/ ",
            "http://127.0.0.1:8080/v1/chat/completions",
            "127.0.0.1:8080",
            true,
        ),
        (
            "http://localhost/chat/completions?version=2",
            "http://localhost/chat/completions",
            "localhost",
            true,
        ),
        ("http://[::1]:80", "http://[::1]/chat/completions", "[::1]", true),
        (
            "http://127.0.0.1.example.com",
            "http://127.0.0.1.example.com/chat/completions",
            "127.0.0.1.example.com",
            false,
        ),
    ] {
        let endpoint = Endpoint::new(Api::ChatCompletions, base_url, None, &[]).unwrap();
        assert_eq!(format!("{endpoint:?}"), format!("Endpoint({shown})"));
        assert_eq!((endpoint.host(), endpoint.is_loopback()), (host, is_loopback));
    }
}

#[test]
fn addresses_that_cannot_be_called_are_refused_with_an_example() {
    for (base_url, message) in [
        ("", "base_url \"\" is no URL (relative URL without a base)"),
        (
            "api.openai.com/v1",
            "base_url \"api.openai.com/v1\" is no URL (relative URL without a base)",
        ),
        (
            "localhost:8080/v1",
            "base_url \"localhost:8080/v1\" does not begin with http:// or https://",
        ),
        ("http://", "base_url \"http://\" is no URL (empty host)"),
        ("https://me:secret@h/v1", "base_url \"h/v1\" holds a user name or password"),
        ("https://h/v1#x", "base_url \"https://h/v1\" has a fragment"),
    ] {
        let failure = Endpoint::new(Api::ChatCompletions, base_url, None, &[]).unwrap_err();
        assert_eq!((&failure.code, &*failure.message), (&ErrorCode::AGENT_INVALID, message));
        assert!(failure.hint.is_some());
    }
}

#[test]
fn keys_and_headers_are_checked_and_never_shown() {
    let header = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
    let url = "http://h/v1?token=secret";
    let endpoint =
        Endpoint::new(Api::ChatCompletions, url, Some(" secret\n"), &header("x-org", "secret"))
            .unwrap();
    assert!(!format!("{endpoint:?}").contains("secret"));
    for (key, headers, message) in [
        (Some("sec\nret"), vec![], "API key for h has characters that a header cannot carry"),
        (None, header("x y", "secret"), "header \"x y\" for h has a name that HTTP does not allow"),
        (
            None,
            header("x", "secret\r\ny: 1"),
            "header \"x\" for h has characters that a header cannot carry",
        ),
        (None, header("Host", "secret"), "header \"Host\" for h is set by the engine itself"),
    ] {
        let failure = Endpoint::new(Api::ChatCompletions, "http://h", key, &headers).unwrap_err();
        assert_eq!(failure.message, message);
    }
}

#[test]
fn each_api_has_its_own_path() {
    for (api, shown) in [
        (Api::Responses, "https://h/v1/responses"),
        (Api::Messages, "https://h/v1/messages"),
        (Api::ChatCompletions, "https://h/v1/chat/completions"),
    ] {
        for base_url in ["https://h/v1", shown] {
            let endpoint = Endpoint::new(api, base_url, None, &[]).unwrap();
            assert_eq!(format!("{endpoint:?}"), format!("Endpoint({shown})"));
        }
    }
}
