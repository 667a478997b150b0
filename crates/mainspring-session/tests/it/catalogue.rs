//! The error codes as people read them. `UPDATE_SNAPSHOTS=1` (or `make fix`) rewrites the pages.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use mainspring_session::{CATALOGUE, ErrorCode};

/// A page of this repository, by its path from the root.
fn page(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the pages are files; the tests of the pure crate may read them"
)]
fn compare(name: &str, rendered: &str) {
    let path = page(name);
    let asked = |name| std::env::var_os(name).is_some_and(|value| value == "1");
    if asked("UPDATE_SNAPSHOTS") || asked("MAINSPRING_FIX") {
        let folder = path.parent().expect("a page lies in a folder");
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(&path, rendered).unwrap();
    }
    let stored = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{name} cannot be read ({error}): run make fix"));
    assert_eq!(stored, rendered, "{name} is out of date: run make fix");
}

/// The first word of a code: what it is about.
fn area(code: &ErrorCode) -> &str {
    code.as_str().split('_').next().unwrap_or_default()
}

#[test]
fn snapshot_of_every_error_code() {
    let mut rendered = String::new();
    for entry in CATALOGUE {
        let again = if entry.retryable { "retry" } else { "final" };
        writeln!(rendered, "{:<24} {again}  {}", entry.code.as_str(), entry.meaning).unwrap();
    }
    compare("tests/snapshots/errors.txt", &rendered);
}

#[test]
fn snapshot_of_the_reference_page_of_errors() {
    let mut rendered = String::from(
        "# Errors\n\n\
         Every error has a code that never changes, a message and, where there is a cure, a hint.\n\
         This page is made from the catalogue in `crates/mainspring-session/src/error.rs` by\n\
         `make fix`.\n\n\
         | code | meaning | can a retry help? |\n\
         |---|---|---|\n",
    );
    for entry in CATALOGUE {
        let again = if entry.retryable { "yes" } else { "no" };
        writeln!(rendered, "| `{}` | {} | {again} |", entry.code, entry.meaning).unwrap();
    }
    compare("docs/reference/errors.md", &rendered);
}

#[test]
fn codes_are_unique_and_in_snake_case() {
    let mut seen = std::collections::BTreeSet::new();
    for entry in CATALOGUE {
        let code = entry.code.as_str();
        assert!(seen.insert(code), "{code} is listed twice");
        let words_are_plain = code
            .split('_')
            .all(|word| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase()));
        assert!(words_are_plain, "{code:?} is not snake_case");
    }
}

#[test]
fn codes_of_one_area_stand_together_in_order() {
    let mut areas: Vec<&str> = CATALOGUE.iter().map(|entry| area(&entry.code)).collect();
    areas.dedup();
    let distinct: std::collections::BTreeSet<_> = areas.iter().copied().collect();
    assert_eq!(areas.len(), distinct.len(), "an area stands in two places: {areas:?}");
    for pair in CATALOGUE.windows(2) {
        let (first, second) = (&pair[0].code, &pair[1].code);
        assert!(area(first) != area(second) || first < second, "{first} stands before {second}");
    }
}

#[test]
fn meanings_are_one_lower_case_line_without_a_full_stop() {
    for entry in CATALOGUE {
        let meaning = entry.meaning;
        let opens_lower = meaning.split(' ').next().is_some_and(|word| {
            word.starts_with(char::is_lowercase) || word.chars().all(char::is_uppercase)
        });
        assert!(opens_lower, "{meaning}");
        assert!(!meaning.ends_with('.') && !meaning.contains(['\n', '|']), "{meaning}");
    }
}

#[test]
fn a_code_is_found_by_its_name() {
    for entry in CATALOGUE {
        assert_eq!(ErrorCode::named(entry.code.as_str()), entry.code);
    }
}
