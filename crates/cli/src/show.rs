//! How tables and fields are laid out on a terminal.

/// Rows under a head line, in columns that are two spaces apart. The last column is not padded.
pub(crate) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let head = head.map(str::to_owned);
    let mut widths = head.each_ref().map(|cell| cell.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Name and value, a line each, the values under each other.
pub(crate) fn fields(fields: &words::Fields) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or_default() + 1;
    let line = |(name, value): (&str, &words::Value)| {
        format!("{:width$}  {}\n", format!("{name}:"), under(&value.to_string(), width + 2))
    };
    fields.iter().map(line).collect()
}

/// A text whose further lines stand so far to the right, so that none looks like a line of ours.
pub(crate) fn under(text: &str, columns: usize) -> String {
    text.trim_end().replace('\n', &format!("\n{:columns$}", ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_stands_in_columns_and_no_line_ends_in_spaces() {
        let rows = [["home".into(), "unlocked".into()], ["a".into(), String::new()]];
        assert_eq!(table(["NAME", "STATE"], &rows), "NAME  STATE\nhome  unlocked\na\n");
    }

    #[test]
    fn what_has_lines_looks_like_one_field() {
        let mut told = words::Fields::default();
        told.add("do", "this\nand that\n");
        told.add("state", "locked");
        let text = fields(&told);
        assert_eq!(text, "do:     this\n        and that\nstate:  locked\n");
    }
}
