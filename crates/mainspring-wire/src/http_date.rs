//! The dates of HTTP headers, as seconds since the epoch.

const DAYS_BEFORE_MONTH: [u64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";

/// Reads `Sun, 06 Nov 1994 08:49:37 GMT`; none for anything else.
///
/// # Source
/// RFC 9110, section 5.6.7, `IMF-fixdate`. The two obsolete forms are left out: no model server
/// sends them, and a date that is not understood means the usual back-off.
pub(crate) fn parse(text: &str) -> Option<u64> {
    let (_, rest) = text.trim().split_once(", ")?;
    let mut fields = rest.split(' ');
    let day: u64 = number(fields.next()?, 2)?;
    let month_name = fields.next().filter(|name| name.len() == 3)?;
    let month = MONTHS.find(month_name).filter(|at| at % 3 == 0)? / 3;
    let year: u64 = number(fields.next()?, 4)?;
    let mut clock = fields.next()?.split(':');
    let (hour, minute, second) =
        (number(clock.next()?, 2)?, number(clock.next()?, 2)?, number(clock.next()?, 2)?);
    let in_range = (1..=31).contains(&day) && hour < 24 && minute < 60 && second <= 60;
    if fields.next() != Some("GMT") || year < 1970 || !in_range {
        return None;
    }
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    // Leap days of the years before this one, since 1970.
    let before = year - 1;
    let leap_days = before / 4 - before / 100 + before / 400 - (1969 / 4 - 1969 / 100 + 1969 / 400);
    let leap_day = u64::from(is_leap && month >= 2);
    let days = (year - 1970) * 365 + leap_days + DAYS_BEFORE_MONTH[month] + leap_day + day - 1;
    Some(days * 86_400 + hour * 3_600 + minute * 60 + second)
}

fn number(text: &str, digits: usize) -> Option<u64> {
    let is_number = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn dates_are_seconds_since_the_epoch_and_anything_else_is_none() {
        assert_eq!(parse("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(parse("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(parse("Thu, 29 Feb 2024 23:59:59 GMT"), Some(1_709_251_199));
        assert_eq!(parse("Fri, 01 Mar 2024 00:00:00 GMT"), Some(1_709_251_200));
        for wrong in ["", "120", "Sun, 06 Nov 1994 08:49:37 CET", "Sun, 6 Nov 1994 08:49:37 GMT"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
        assert_eq!(parse("Sun, 06 anF 1994 08:49:37 GMT"), None);
    }
}
