-- nbdev links names of the package wherever it finds them in backticks, also in comments of signatures, where Markdown is not read.
function CodeBlock(el)
  el.text = el.text:gsub("%[`([^`\n]+)`%]%(https?://[^)%s]+%)", "%1")
  return el
end

-- The same in a link that the author wrote: there is none within another, so the inner one would be read as text.
function Link(el)
  local c = el.content
  for i = #c - 2, 1, -1 do
    if c[i].text == "[" and c[i + 1].t == "Code" and c[i + 2].t == "Str" then
      local rest, found = c[i + 2].text:gsub("^%]%(https?://[^)%s]+%)", "")
      if found == 1 then
        c[i + 2] = pandoc.Str(rest)
        c:remove(i)
      end
    end
  end
  return el
end
