//! What error responses mean.

use mainspring_session::ErrorCode;
use mainspring_wire::{
    HttpFailure, RETRY_AFTER_MS_MAX, RetryHeaders, classify_error, error_of_body,
};

fn classify(status: u16, body: &str) -> HttpFailure {
    classify_error("model \"m\" at h:1", status, RetryHeaders::default(), body.as_bytes())
}

#[test]
fn each_status_has_a_code_and_says_whether_a_retry_can_help() {
    for (status, body, code, retryable) in [
        (400, "{}", ErrorCode::MODEL_BAD_REQUEST, false),
        (400, r#"{"error":{"code":"model_not_found"}}"#, ErrorCode::MODEL_NOT_FOUND, false),
        (401, "", ErrorCode::MODEL_AUTH, false),
        (402, "", ErrorCode::MODEL_AUTH, false),
        (403, "", ErrorCode::MODEL_AUTH, false),
        (404, "<html>", ErrorCode::MODEL_NOT_FOUND, false),
        (307, "", ErrorCode::MODEL_NOT_FOUND, false),
        (408, "", ErrorCode::MODEL_TIMEOUT, true),
        (409, "", ErrorCode::MODEL_SERVER_ERROR, true),
        (413, "", ErrorCode::MODEL_CONTEXT_OVERFLOW, false),
        (422, r#"{"detail":[{"msg":"bad"}]}"#, ErrorCode::MODEL_BAD_REQUEST, false),
        (429, "", ErrorCode::MODEL_RATE_LIMITED, true),
        (429, r#"{"error":{"code":"insufficient_quota"}}"#, ErrorCode::MODEL_RATE_LIMITED, false),
        (500, "", ErrorCode::MODEL_SERVER_ERROR, true),
        (501, "", ErrorCode::MODEL_SERVER_ERROR, false),
        (
            503,
            r#"{"error":{"message":"Loading model","code":503}}"#,
            ErrorCode::MODEL_SERVER_ERROR,
            true,
        ),
        (204, "", ErrorCode::MODEL_BAD_RESPONSE, true),
    ] {
        let failure = classify(status, body).failure;
        assert_eq!((&failure.code, failure.retryable), (&code, retryable), "{status} {body}");
        assert!(
            failure
                .message
                .starts_with(&format!("model \"m\" at h:1 answered with status {status}"))
        );
    }
}

#[test]
fn the_server_s_words_are_shown_on_one_line_and_cut() {
    let failure =
        classify(400, r#"{"error":{"message":"no such\n field.","type":"invalid_request_error"}}"#)
            .failure;
    assert_eq!(
        failure.to_text(),
        "model \"m\" at h:1 answered with status 400 (invalid_request_error): no such field\n\
         hint: check the model's params and that the server knows tools and response_format"
    );
    let long = format!("{{\"error\":\"{}\"}}", "word ".repeat(1000));
    assert!(classify(500, &long).failure.message.len() < 400);
}

#[test]
fn no_message_holds_a_key() {
    let key = "sk-proj-AbCdEf0123456789AbCdEf0123456789";
    let told = format!(
        r#"{{"error":{{"message":"Incorrect API key provided: {key}","code":"invalid_api_key"}}}}"#
    );
    let failure = classify(401, &told).failure;
    assert_eq!(
        failure.to_text(),
        "model \"m\" at h:1 answered with status 401 (invalid_api_key)\n\
         hint: check the API key and that it may use this model"
    );
    let told =
        format!(r#"{{"error":{{"message":"bad header 'Bearer {key}', see log","code":"{key}"}}}}"#);
    let failure = classify(500, &told).failure;
    assert_eq!(
        failure.message,
        "model \"m\" at h:1 answered with status 500: bad header 'Bearer [redacted] see log"
    );
}

#[test]
fn waits_come_as_seconds_dates_or_milliseconds_and_are_bounded() {
    let now_unix_s = 784_111_777;
    let wait = |retry_after: Option<&str>, retry_after_ms: Option<&str>| {
        let retry = RetryHeaders { retry_after, retry_after_ms, now_unix_s };
        classify_error("m", 429, retry, b"").retry_after_ms
    };
    assert_eq!(wait(Some("7"), None), Some(7_000));
    assert_eq!(wait(Some("0.5"), None), Some(500));
    assert_eq!(wait(Some("7"), Some("250")), Some(250));
    assert_eq!(wait(Some("Sun, 06 Nov 1994 08:49:47 GMT"), None), Some(10_000));
    assert_eq!(wait(Some("Sun, 06 Nov 1994 08:00:00 GMT"), None), Some(0));
    assert_eq!(wait(Some("1e300"), None), Some(RETRY_AFTER_MS_MAX));
    for wrong in ["", "soon", "-1", "NaN"] {
        assert_eq!(wait(Some(wrong), None), None, "{wrong}");
    }
    assert_eq!(wait(None, None), None);
}

#[test]
fn errors_inside_a_body_are_classified_by_their_own_names() {
    for (body, code) in [
        (r#"{"error":{"type":"rate_limit_exceeded"}}"#, ErrorCode::MODEL_RATE_LIMITED),
        (r#"{"error":{"code":"invalid_api_key"}}"#, ErrorCode::MODEL_AUTH),
        (r#"{"error":{"type":"invalid_request_error"}}"#, ErrorCode::MODEL_BAD_REQUEST),
        (r#"{"error":{"code":502,"message":"upstream"}}"#, ErrorCode::MODEL_SERVER_ERROR),
        (r#"{"error":"boom"}"#, ErrorCode::MODEL_SERVER_ERROR),
    ] {
        assert_eq!(error_of_body("m", body.as_bytes()).unwrap().failure.code, code, "{body}");
    }
    assert_eq!(error_of_body("m", br#"{"error":null}"#), None);
    assert_eq!(error_of_body("m", b"[]"), None);
}

#[test]
fn every_server_s_way_of_saying_that_a_conversation_is_too_long_is_known() {
    for (status, body) in [
        (400, r#"{"error":{"code":"context_length_exceeded"}}"#),
        (400, r#"{"error":{"type":"exceed_context_size_error"}}"#),
        (400, r#"{"message":"This model's maximum context length is 8"}"#),
        (500, r#"{"error":"the request exceeds the available context size"}"#),
        (
            400,
            r#"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 9 tokens > 8 maximum"}}"#,
        ),
        (400, r#"{"error":{"message":"Your input exceeds the context window of this model."}}"#),
        (
            400,
            r#"{"error":{"message":"input length and `max_tokens` exceed context limit: 9 + 8"}}"#,
        ),
        (
            400,
            r#"{"message":"The decoder prompt (length 9) is longer than the maximum model length of 8"}"#,
        ),
    ] {
        let failure = classify(status, body).failure;
        assert_eq!((&failure.code, failure.retryable), (&ErrorCode::MODEL_CONTEXT_OVERFLOW, false));
    }
}

#[test]
fn what_a_body_says_goes_before_what_its_status_says() {
    for (status, body, code, retryable) in [
        (
            400,
            r#"{"error":{"code":"content_filter","message":"no"}}"#,
            ErrorCode::MODEL_CONTENT_FILTER,
            false,
        ),
        (
            413,
            r#"{"error":{"code":"rate_limit_exceeded","type":"tokens"}}"#,
            ErrorCode::MODEL_RATE_LIMITED,
            true,
        ),
        (
            529,
            r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#,
            ErrorCode::MODEL_SERVER_ERROR,
            true,
        ),
    ] {
        let failure = classify(status, body).failure;
        assert_eq!((&failure.code, failure.retryable), (&code, retryable), "{status} {body}");
    }
}
