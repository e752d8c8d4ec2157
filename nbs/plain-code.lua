-- nbdev links names of the package wherever it finds them in backticks, also in comments of signatures, where Markdown is not read.
function CodeBlock(el)
  el.text = el.text:gsub("%[`([^`\n]+)`%]%(https?://[^)%s]+%)", "%1")
  return el
end
