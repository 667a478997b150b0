//! What a text looks like as numbers.

use mainspring_route::{Features, SURFACE_NAMES};

fn surface(text: &str, name: &str) -> f32 {
    let idx = SURFACE_NAMES.iter().position(|each| *each == name).expect("there is one");
    Features::of(text).surface()[idx]
}

fn logged(count: f64) -> f32 {
    count.ln_1p() as f32
}

fn sorted(text: &str) -> Vec<(u16, u32)> {
    let mut grams: Vec<_> = Features::of(text).grams().collect();
    grams.sort_unstable();
    grams
}

#[test]
fn words_and_pairs_are_counted_without_regard_to_case_and_marks() {
    assert_eq!(sorted("The cat, the CAT!"), sorted("the cat the cat"));
    // the, cat, the-cat twice; cat-the once.
    let counts: Vec<u32> = sorted("the cat the cat").iter().map(|(_, count)| *count).collect();
    assert_eq!(counts.iter().sum::<u32>(), 7);
    assert_eq!(counts.len(), 4);
    assert_ne!(sorted("cat the"), sorted("the cat"));
    assert!(sorted("").is_empty());
}

#[test]
fn surface_counts_what_its_names_say() {
    let text = "Is 3/4 = 75 % NOT true?\nNever. x^2 + 10";
    assert_eq!(surface(text, "bytes"), logged(text.len() as f64));
    assert_eq!(surface(text, "digits"), logged(7.0));
    assert_eq!(surface(text, "numbers"), logged(5.0));
    assert_eq!(surface(text, "newlines"), logged(1.0));
    assert_eq!(surface(text, "percent_signs"), logged(1.0));
    assert_eq!(surface(text, "slashes"), logged(1.0));
    assert_eq!(surface(text, "maths_signs"), logged(3.0));
    assert_eq!(surface(text, "negations"), logged(2.0));
    assert_eq!(surface(text, "question_marks"), logged(1.0));
    assert_eq!(surface(text, "capitals_share"), 5.0 / 15.0);
    assert_eq!(surface("12", "capitals_share"), 0.0);
}

#[test]
fn of_a_long_text_the_beginning_and_the_end_count() {
    let middle = "unseen ".repeat(10_000);
    let text = format!("{}{middle}{}", "first ".repeat(400), "last ".repeat(500));
    let grams = sorted(&text);
    for (part, is_in) in [("first", true), ("last", true), ("unseen", false)] {
        let bucket = sorted(part)[0].0;
        assert_eq!(grams.iter().any(|(each, _)| *each == bucket), is_in, "{part}");
    }
    assert_eq!(surface(&text, "bytes"), logged(text.len() as f64));
}

#[test]
fn a_text_has_a_bounded_number_of_grams() {
    // 4,096 bytes of one-letter words and their pairs, as different as they can be.
    let letters: Vec<char> = ('a'..='z').chain('0'..='9').chain('à'..='ž').collect();
    let mut text = String::new();
    for (idx, one) in letters.iter().enumerate() {
        for other in &letters[idx..] {
            text.push(*one);
            text.push(' ');
            text.push(*other);
            text.push(' ');
        }
    }
    let count = Features::of(&text[..4096]).grams().count();
    assert!(count <= 2048, "{count}");
}
