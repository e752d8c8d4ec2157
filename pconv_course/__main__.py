from pconv_course.cli import main
if __name__ == "__main__": main()
